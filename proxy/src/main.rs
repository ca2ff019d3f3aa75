//! The sidecar program.
fn main() {}
