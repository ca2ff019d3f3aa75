//! The values that rules are made of.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::{Error, socket};

/// Tables that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Tables, each replaced as a whole.
    pub tables: Vec<Table>,
}

impl Ruleset {
    /// Replaces these tables in the current network namespace, all or nothing. Other tables stay as they are.
    ///
    /// # Errors
    ///
    /// Names the table, chain or rule that the kernel refused, and why.
    pub fn apply(&self) -> Result<(), Error> {
        socket::apply(self)
    }

    /// Removes these tables if they are there.
    ///
    /// # Errors
    ///
    /// As [`Ruleset::apply`].
    pub fn remove(&self) -> Result<(), Error> {
        socket::remove(self)
    }
}

impl From<Table> for Ruleset {
    fn from(table: Table) -> Self {
        Self {
            tables: vec![table],
        }
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its chains; one may jump to any other.
    pub chains: Vec<Chain>,
}

impl Table {
    /// A table without chains.
    #[must_use]
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
            chains: Vec::new(),
        }
    }

    /// Adds a chain.
    #[must_use]
    pub fn chain(mut self, chain: Chain) -> Self {
        self.chains.push(chain);
        self
    }
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it; `None`: only by a jump.
    pub hook: Option<Hook>,
    /// Rules in order of evaluation.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that packets enter at a hook.
    #[must_use]
    pub fn at(hook: Hook, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            hook: Some(hook),
            rules: Vec::new(),
        }
    }

    /// A chain that other chains jump to.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            hook: None,
            rules: Vec::new(),
        }
    }

    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

/// The nat hooks, with their usual priorities and policy accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Packets that arrive, before routing: destination nat.
    Prerouting,
    /// Packets of local processes: destination nat.
    Output,
    /// Packets that leave, after routing: source nat.
    Postrouting,
}

/// A rule: what must hold, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All of them must hold.
    pub matches: Vec<Match>,
    /// Whether packets that get here are counted.
    pub counted: bool,
    /// What happens then.
    pub verdict: Verdict,
}

impl Rule {
    /// A rule that always does this.
    #[must_use]
    pub fn new(verdict: Verdict) -> Self {
        Self {
            matches: Vec::new(),
            counted: false,
            verdict,
        }
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, condition: Match) -> Self {
        self.matches.push(condition);
        self
    }

    /// Counts the packets that the conditions let through.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.counted = true;
        self
    }
}

/// Whether a comparison must hold or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// Equal, or inside the network.
    Is,
    /// Different, or outside the network.
    IsNot,
}

/// Transport protocols with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The transport protocol.
    Protocol(Transport),
    /// The transport protocol and its destination port.
    DestinationPort(Transport, Test, u16),
    /// The destination address. Implies the address family.
    Destination(Test, IpNet),
    /// The source address. Implies the address family.
    Source(Test, IpNet),
    /// The interface that the packet came in by, by name.
    InputInterface(Test, String),
    /// The interface that the packet goes out by, by name.
    OutputInterface(Test, String),
    /// The user that owns the sending socket.
    SocketUser(Test, u32),
    /// The group that owns the sending socket.
    SocketGroup(Test, u32),
    /// The packet's mark.
    Mark(Test, u32),
    /// One packet in `n`, at random.
    OneIn(u32),
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on; no later rule of this hook and priority sees it.
    Accept,
    /// It is dropped.
    Drop,
    /// Evaluation goes on after the jump that led here.
    Return,
    /// Evaluation goes on in another chain, and comes back.
    Jump(String),
    /// Evaluation goes on in another chain, and does not come back.
    Goto(String),
    /// It goes to a port of this host.
    Redirect(u16),
    /// It goes to another address and port.
    Dnat(SocketAddr),
    /// Its source becomes the address of the interface it leaves by.
    Masquerade,
}
