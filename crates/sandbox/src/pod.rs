//! One pod: what its containers need (`plan`), its files (`volumes`), its processes (`container`, `probe`) and its life
//! from the first init container to the last SIGKILL (`life`).

pub(crate) mod container;
pub(crate) mod env;
pub(crate) mod life;
pub(crate) mod log;
pub(crate) mod plan;
mod probe;
pub(crate) mod process;
mod security;
pub(crate) mod status;
pub(crate) mod volumes;
