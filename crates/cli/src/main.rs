//! The tulle program.
fn main() {}
