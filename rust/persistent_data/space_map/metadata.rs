// SPDX-License-Identifier: GPL-2.0

//! The metadata space map's own allocator.
