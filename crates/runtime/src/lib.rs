//! The chassis every Tulle program stands on.

pub mod names;
