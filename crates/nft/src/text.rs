//! Rules as `nft` text, in the form that `nft list ruleset` prints and `nft -f` reads.

use std::fmt::{self, Display, Formatter};

use ipnet::IpNet;

use crate::rules::{Chain, Family, Hook, Match, Rule, Ruleset, Table, Test, Transport, Verdict};

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.tables
            .iter()
            .try_for_each(|table| write!(f, "{table}"))
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family, self.name)?;
        for (index, chain) in self.chains.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write_chain(f, chain, self.family)?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

fn write_chain(f: &mut Formatter<'_>, chain: &Chain, family: Family) -> fmt::Result {
    writeln!(f, "\tchain {} {{", chain.name)?;
    if let Some(hook) = chain.hook {
        let (name, priority) = match hook {
            Hook::Prerouting => ("prerouting", "dstnat"),
            Hook::Output => ("output", "-100"),
            Hook::Postrouting => ("postrouting", "srcnat"),
        };
        writeln!(
            f,
            "\t\ttype nat hook {name} priority {priority}; policy accept;"
        )?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{}", InTable(rule, family))?;
    }
    writeln!(f, "\t}}")
}

/// A rule in a table of some family; an inet table has to say which family `dnat` means.
pub(crate) struct InTable<'a>(pub(crate) &'a Rule, pub(crate) Family);

impl Display for InTable<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(rule, family) = self;
        for condition in &rule.matches {
            write!(f, "{condition} ")?;
        }
        if rule.counted {
            f.write_str("counter ")?;
        }
        match &rule.verdict {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
            Verdict::Masquerade => f.write_str("masquerade"),
            Verdict::Dnat(target) if *family == Family::Inet => {
                let family = if target.is_ipv4() { "ip" } else { "ip6" };
                write!(f, "dnat {family} to {target}")
            }
            Verdict::Dnat(target) => write!(f, "dnat to {target}"),
        }
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::DestinationPort(protocol, test, port) => {
                write!(f, "{protocol} dport {test}{port}")
            }
            Self::Destination(test, network) => write_address(f, "daddr", *test, network),
            Self::Source(test, network) => write_address(f, "saddr", *test, network),
            Self::InputInterface(test, name) => write!(f, "iifname {test}\"{name}\""),
            Self::OutputInterface(test, name) => write!(f, "oifname {test}\"{name}\""),
            Self::SocketUser(test, id) => write!(f, "meta skuid {test}{id}"),
            Self::SocketGroup(test, id) => write!(f, "meta skgid {test}{id}"),
            Self::Mark(test, mark) => write!(f, "meta mark {test}0x{mark:08x}"),
            Self::OneIn(n) => write!(f, "numgen random mod {n} 0"),
        }
    }
}

fn write_address(f: &mut Formatter<'_>, field: &str, test: Test, network: &IpNet) -> fmt::Result {
    let family = match network {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    };
    write!(f, "{family} {field} {test}{}", network.network())?;
    if network.prefix_len() < network.max_prefix_len() {
        write!(f, "/{}", network.prefix_len())?;
    }
    Ok(())
}

impl Display for Test {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Is => "",
            Self::IsNot => "!= ",
        })
    }
}

impl Display for Transport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}
