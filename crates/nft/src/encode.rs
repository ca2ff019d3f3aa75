//! Rules as nfnetlink messages: one batch, with a note for each message of what it stands for.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h` and `nfnetlink.h`, which are part of the kernel's stable
//! interface. Lengths and header fields are in host byte order, attribute values in network byte order, and register
//! contents as the packet or socket has them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::Error;
use crate::rules::{Chain, Family, Hook, Match, Rule, Ruleset, Table, Test, Transport, Verdict};
use crate::text::InTable;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_SKGID: u32 = 11;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const INTERFACE_NAME_LENGTH: usize = 16;

/// A batch, ready to be sent.
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// What the message with sequence number `i` stands for, as nft text.
    pub(crate) notes: Vec<String>,
}

/// The batch that replaces every table of a rule set.
pub(crate) fn replace(ruleset: &Ruleset) -> Result<Batch, Error> {
    let mut batch = Batch::begin();
    for table in &ruleset.tables {
        batch.clear(table);
        batch.table(table, NEW_TABLE, NLM_F_CREATE);
        // Every chain before the first rule, because rules jump forwards too.
        for chain in &table.chains {
            batch.chain(table, chain);
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                batch.rule(table, chain, rule)?;
            }
        }
    }
    batch.end();
    Ok(batch)
}

/// The batch that removes every table of a rule set.
pub(crate) fn remove(ruleset: &Ruleset) -> Batch {
    let mut batch = Batch::begin();
    for table in &ruleset.tables {
        batch.clear(table);
    }
    batch.end();
    batch
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self {
            bytes: Vec::with_capacity(4096),
            notes: Vec::new(),
        };
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, "the batch".to_owned(), |_| {});
        batch
    }

    fn end(&mut self) {
        self.message(BATCH_END, 0, 0, SUBSYSTEM, "the batch".to_owned(), |_| {});
    }

    /// Deletes a table that may not exist: creating it first makes the deletion succeed either way.
    fn clear(&mut self, table: &Table) {
        self.table(table, NEW_TABLE, NLM_F_CREATE);
        self.table(table, DELETE_TABLE, 0);
    }

    fn table(&mut self, table: &Table, kind: u16, flags: u16) {
        let note = format!("table {} {}", table.family, table.name);
        self.message(kind, flags, nfproto(table.family), 0, note, |attributes| {
            attributes.text(1, &table.name);
        });
    }

    fn chain(&mut self, table: &Table, chain: &Chain) {
        let note = format!(
            "chain {} of table {} {}",
            chain.name, table.family, table.name
        );
        self.message(
            NEW_CHAIN,
            NLM_F_CREATE,
            nfproto(table.family),
            0,
            note,
            |attributes| {
                attributes.text(1, &table.name);
                attributes.text(3, &chain.name);
                let Some(hook) = chain.hook else { return };
                let (number, priority) = match hook {
                    Hook::Prerouting => (0, -100_i32),
                    Hook::Output => (3, -100),
                    Hook::Postrouting => (4, 100),
                };
                attributes.nested(4, |hook| {
                    hook.number(1, number);
                    hook.number(2, priority.cast_unsigned());
                });
                attributes.number(5, 1); // policy accept
                attributes.text(7, "nat");
            },
        );
    }

    fn rule(&mut self, table: &Table, chain: &Chain, rule: &Rule) -> Result<(), Error> {
        check_families(table, rule)?;
        let text = InTable(rule, table.family);
        let note = format!(
            "rule `{text}` in chain {} of table {} {}",
            chain.name, table.family, table.name
        );
        self.message(
            NEW_RULE,
            NLM_F_CREATE | NLM_F_APPEND,
            nfproto(table.family),
            0,
            note,
            |attributes| {
                attributes.text(1, &table.name);
                attributes.text(2, &chain.name);
                attributes.nested(4, |list| {
                    for condition in &rule.matches {
                        encode_match(list, condition, table.family);
                    }
                    if rule.counted {
                        list.expression("counter", |_| {});
                    }
                    encode_verdict(list, &rule.verdict);
                });
            },
        );
        Ok(())
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        note: String,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        let sequence =
            u32::try_from(self.notes.len()).expect("a batch has fewer than 2^32 messages");
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(&mut Attributes(&mut self.bytes));
        let length =
            u32::try_from(self.bytes.len() - start).expect("a message is shorter than 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.notes.push(note);
    }
}

/// Appends attributes: length, type, value, padded to four bytes.
struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("values are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated);
    }

    fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0
            .extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        body(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).expect("a rule's expressions fit 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn data(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |data| data.bytes(1, value));
    }

    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Attributes<'_>)) {
        self.nested(1, |element| {
            element.text(1, name);
            element.nested(2, body);
        });
    }

    fn meta(&mut self, key: u32) {
        self.expression("meta", |meta| {
            meta.number(2, key);
            meta.number(1, REGISTER_1);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.expression("payload", |payload| {
            payload.number(1, REGISTER_1);
            payload.number(2, base);
            payload.number(3, offset);
            payload.number(4, length);
        });
    }

    fn compare(&mut self, test: Test, value: &[u8]) {
        self.expression("cmp", |compare| {
            compare.number(1, REGISTER_1);
            compare.number(2, u32::from(test == Test::IsNot));
            compare.data(3, value);
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |immediate| {
            immediate.number(1, register);
            immediate.data(2, value);
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.expression("immediate", |immediate| {
            immediate.number(1, REGISTER_VERDICT);
            immediate.nested(2, |data| {
                data.nested(2, |verdict| {
                    verdict.number(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
    }
}

fn encode_match(list: &mut Attributes<'_>, condition: &Match, family: Family) {
    match condition {
        Match::Protocol(protocol) => encode_protocol(list, *protocol),
        Match::DestinationPort(protocol, test, port) => {
            encode_protocol(list, *protocol);
            list.payload(TRANSPORT_HEADER, 2, 2);
            list.compare(*test, &port.to_be_bytes());
        }
        Match::Destination(test, network) => encode_address(list, *test, network, family, 16, 24),
        Match::Source(test, network) => encode_address(list, *test, network, family, 12, 8),
        Match::InputInterface(test, name) => encode_interface(list, META_IIFNAME, *test, name),
        Match::OutputInterface(test, name) => encode_interface(list, META_OIFNAME, *test, name),
        Match::SocketUser(test, id) => encode_meta(list, META_SKUID, *test, *id),
        Match::SocketGroup(test, id) => encode_meta(list, META_SKGID, *test, *id),
        Match::Mark(test, mark) => encode_meta(list, META_MARK, *test, *mark),
        Match::OneIn(n) => {
            list.expression("numgen", |numgen| {
                numgen.number(1, REGISTER_1);
                numgen.number(2, *n);
                numgen.number(3, 1); // random
            });
            list.compare(Test::Is, &0_u32.to_ne_bytes());
        }
    }
}

fn encode_meta(list: &mut Attributes<'_>, key: u32, test: Test, value: u32) {
    list.meta(key);
    list.compare(test, &value.to_ne_bytes());
}

fn encode_protocol(list: &mut Attributes<'_>, protocol: Transport) {
    list.meta(META_L4PROTO);
    list.compare(
        Test::Is,
        &[match protocol {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }],
    );
}

fn encode_interface(list: &mut Attributes<'_>, key: u32, test: Test, name: &str) {
    let mut padded = [0; INTERFACE_NAME_LENGTH];
    let length = name.len().min(INTERFACE_NAME_LENGTH - 1);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    list.meta(key);
    list.compare(test, &padded);
}

/// Compares an address field of the network header, at one offset in IPv4 and at another in IPv6.
fn encode_address(
    list: &mut Attributes<'_>,
    test: Test,
    network: &IpNet,
    family: Family,
    v4: u32,
    v6: u32,
) {
    let (protocol, offset) = match network {
        IpNet::V4(_) => (NFPROTO_IPV4, v4),
        IpNet::V6(_) => (NFPROTO_IPV6, v6),
    };
    if family == Family::Inet {
        list.meta(META_NFPROTO);
        list.compare(Test::Is, &[protocol]);
    }
    let address = octets(network.network());
    let length = if network.addr().is_ipv4() { 4 } else { 16 };
    list.payload(NETWORK_HEADER, offset, length);
    if network.prefix_len() < network.max_prefix_len() {
        list.expression("bitwise", |bitwise| {
            bitwise.number(1, REGISTER_1);
            bitwise.number(2, REGISTER_1);
            bitwise.number(3, length);
            bitwise.data(4, &octets(network.netmask()));
            bitwise.data(5, &vec![0; address.len()]);
        });
    }
    list.compare(test, &address);
}

fn encode_verdict(list: &mut Attributes<'_>, verdict: &Verdict) {
    match verdict {
        Verdict::Drop => list.verdict(0, None),
        Verdict::Accept => list.verdict(1, None),
        Verdict::Jump(chain) => list.verdict(-3, Some(chain)),
        Verdict::Goto(chain) => list.verdict(-4, Some(chain)),
        Verdict::Return => list.verdict(-5, None),
        Verdict::Masquerade => list.expression("masq", |_| {}),
        Verdict::Redirect(port) => {
            list.immediate(REGISTER_1, &port.to_be_bytes());
            list.expression("redir", |redirect| {
                redirect.number(1, REGISTER_1);
                redirect.number(3, 2); // a port is given
            });
        }
        Verdict::Dnat(target) => encode_dnat(list, *target),
    }
}

fn encode_dnat(list: &mut Attributes<'_>, target: SocketAddr) {
    let family = if target.is_ipv4() {
        NFPROTO_IPV4
    } else {
        NFPROTO_IPV6
    };
    list.immediate(REGISTER_1, &octets(target.ip()));
    list.immediate(REGISTER_2, &target.port().to_be_bytes());
    list.expression("nat", |nat| {
        nat.number(1, 1); // destination
        nat.number(2, family.into());
        nat.number(3, REGISTER_1);
        nat.number(5, REGISTER_2);
        nat.number(7, 3); // address and port are given
    });
}

/// The kernel would compare an IPv6 address with the wrong bytes of an IPv4 header; say so instead.
fn check_families(table: &Table, rule: &Rule) -> Result<(), Error> {
    let fits = |is_ipv4| match table.family {
        Family::Inet => true,
        Family::Ip => is_ipv4,
        Family::Ip6 => !is_ipv4,
    };
    let wrong = |address: String| Error::WrongFamily {
        address,
        table: format!("{} {}", table.family, table.name),
    };
    for condition in &rule.matches {
        if let Match::Destination(_, network) | Match::Source(_, network) = condition
            && !fits(network.addr().is_ipv4())
        {
            return Err(wrong(network.to_string()));
        }
    }
    match rule.verdict {
        Verdict::Dnat(target) if !fits(target.is_ipv4()) => Err(wrong(target.to_string())),
        _ => Ok(()),
    }
}

fn nfproto(family: Family) -> u8 {
    match family {
        Family::Inet => NFPROTO_INET,
        Family::Ip => NFPROTO_IPV4,
        Family::Ip6 => NFPROTO_IPV6,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
