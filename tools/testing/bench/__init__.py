# SPDX-License-Identifier: GPL-2.0
"""The benchmark: what is measured, how the virtual machine does it, and what becomes of the figures."""
