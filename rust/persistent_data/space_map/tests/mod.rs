// SPDX-License-Identifier: GPL-2.0

//! Space maps and transactions against models.

mod checker;
mod costs;
mod crash;
mod faults;
mod format;
mod hostile;
mod model;
mod rules;
mod world;
