//! The node's rules: ClusterIPs become endpoints on the way in, spread at random, connection by connection.
//!
//! Everything that pods send is routed through the node, so the answers come back through it and are translated back.
//! Only a pod that reaches itself through its own Service needs its source hidden, or it would see its own address come in.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tulle_nft::{Chain, Family, Hook, Match, Rule, Ruleset, Table, Test, Verdict};

use crate::endpoints::Translation;

const TABLE: &str = "tulle-sandbox";
const SERVICES: &str = "services";

/// The rules for these translations; later ones replace earlier ones as a whole.
pub(crate) fn ruleset(translations: &[Translation]) -> Ruleset {
    let services = Rule::new(Verdict::Jump(SERVICES.to_owned()));
    let mut table = Table::new(Family::Inet, TABLE)
        .chain(Chain::at(Hook::Prerouting, "arriving").rule(services.clone()))
        .chain(Chain::at(Hook::Output, "local").rule(services));
    let mut index = Chain::named(SERVICES);
    let mut chains = Vec::new();
    let mut backends = BTreeSet::new();
    for (number, translation) in translations.iter().enumerate() {
        let endpoints = &translation.to;
        if endpoints.is_empty() {
            continue;
        }
        let name = format!("service-{number}");
        let jump = Rule::new(Verdict::Goto(name.clone()))
            .when(Match::Destination(
                Test::Is,
                IpNet::from(translation.from.ip()),
            ))
            .when(Match::DestinationPort(
                translation.transport,
                Test::Is,
                translation.from.port(),
            ));
        index = index.rule(jump);
        let mut chain = Chain::named(name);
        for (endpoint, left) in endpoints.iter().zip((1..=endpoints.len()).rev()) {
            // A rule with a port must say of which protocol it is.
            let mut rule =
                Rule::new(Verdict::Dnat(*endpoint)).when(Match::Protocol(translation.transport));
            if let Ok(left @ 2..) = u32::try_from(left) {
                rule = rule.when(Match::OneIn(left));
            }
            chain = chain.rule(rule);
            backends.insert(endpoint.ip());
        }
        chains.push(chain);
    }
    let mut leaving = Chain::at(Hook::Postrouting, "leaving");
    leaving.rules.extend(backends.into_iter().map(hairpin));
    table.chains.push(leaving);
    table.chains.push(index);
    table.chains.extend(chains);
    table.into()
}

fn hairpin(ip: IpAddr) -> Rule {
    Rule::new(Verdict::Masquerade)
        .when(Match::Source(Test::Is, IpNet::from(ip)))
        .when(Match::Destination(Test::Is, IpNet::from(ip)))
}

#[cfg(test)]
mod tests {
    use tulle_nft::Transport;

    use super::*;

    #[test]
    fn endpoints_share_evenly_and_a_service_without_any_has_no_rule() {
        let to = |last: &[u8]| {
            last.iter()
                .map(|last| ([10, 244, 0, *last], 8080).into())
                .collect()
        };
        let service = |last: u8, endpoints: &[u8]| Translation {
            from: ([10, 96, 0, last], 80).into(),
            transport: Transport::Tcp,
            to: to(endpoints),
        };
        let rules = ruleset(&[service(1, &[2, 3, 4]), service(2, &[])]);
        let chains = &rules.tables[0].chains;
        let find = |name: &str| chains.iter().find(|chain| chain.name == name).expect(name);
        assert_eq!(find(SERVICES).rules.len(), 1);
        assert_eq!(find("leaving").rules.len(), 3);
        let odds: Vec<_> = find("service-0")
            .rules
            .iter()
            .map(|rule| {
                rule.matches.iter().find_map(|condition| match condition {
                    Match::OneIn(n) => Some(*n),
                    _ => None,
                })
            })
            .collect();
        assert_eq!(odds, [Some(3), Some(2), None]);
    }
}
