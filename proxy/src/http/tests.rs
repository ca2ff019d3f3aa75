mod harness;
mod inbound;
mod outbound;
mod retry;
