//! HTTP between a client and whatever answers it.
//!
//! [`serve`] runs one connection of a client; each request on it goes through one recipe, [`outbound`] or
//! [`inbound`], which reads config once, sends the request upstream, and answers with what came back or with a
//! [`local_reply`]. A request lives on its connection's worker and is never handed to another task of ours.

mod body;
mod crowd;
mod exchange;
mod forward;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod given_up;
mod headers;
mod inbound;
mod linger;
mod local_reply;
mod outbound;
mod refused;
mod server;
mod stalls;
mod unused;
mod upgrade;

pub use local_reply::FAILED_HOP_HEADER;
pub use server::serve;

#[cfg(test)]
mod tests;
