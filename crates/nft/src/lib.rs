//! nf_tables rules as data: printed as `nft` text, applied to the kernel over netlink.
//!
//! [`Ruleset`] and what it is made of are plain values. [`Ruleset::apply`] replaces the tables it names in one atomic
//! batch, so a second call with the same rules changes nothing and a failed one leaves the old rules in place. No
//! `nft` program and no shell is involved.

mod encode;
mod rules;
mod socket;
mod text;

#[cfg(test)]
mod tests;

use std::io;

pub use rules::{Chain, Family, Hook, Match, Rule, Ruleset, Table, Test, Transport, Verdict};

/// Why rules could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no nf_tables.
    #[error(
        "this kernel has no nf_tables ({0}); capture needs CONFIG_NF_TABLES with inet and nat support \
         (Linux 5.2 or newer): load the nf_tables module on the node or use another kernel"
    )]
    NoNfTables(io::Error),
    /// The caller may not change rules here.
    #[error(
        "not permitted to change nf_tables rules ({0}); run with CAP_NET_ADMIN in the pod's network namespace \
         (securityContext.capabilities.add: [NET_ADMIN])"
    )]
    NotPermitted(io::Error),
    /// The kernel refused one thing.
    #[error("the kernel refused {what} ({error}){remedy}")]
    Refused {
        /// The table, chain or rule, as nft text.
        what: String,
        /// What the kernel said.
        error: io::Error,
        /// What to do about it, with its own separator; empty if nothing is known.
        remedy: &'static str,
    },
    /// A rule compares or sets an address of another family than its table's.
    #[error(
        "address {address} does not fit table {table}; use a table of its own family or an inet table"
    )]
    WrongFamily {
        /// The address.
        address: String,
        /// The table.
        table: String,
    },
    /// The netlink socket failed.
    #[error("netlink: could not {doing} ({error})")]
    Netlink {
        /// What was attempted.
        doing: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}
