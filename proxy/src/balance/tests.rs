//! Which endpoint is picked how often, and what takes one out.

use std::collections::HashMap;

use super::*;
use crate::config::Endpoints;
use crate::config::cluster::{CircuitBreaker, Discovery, Health};

const NOW: u64 = 1_000;

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8080))
}

fn endpoint(n: u8, weight: u32, health: Health) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: address(n),
        weight,
        health,
        mtls: None,
        foreign: false,
        workload: Arc::default(),
        state: Arc::default(),
    })
}

fn cluster(lb_policy: LbPolicy, endpoints: Vec<Arc<Endpoint>>) -> Cluster {
    Cluster {
        name: "c".into(),
        service: None,
        discovery: Discovery::Eds,
        lb_policy,
        http: Default::default(),
        connect_timeout: Duration::from_secs(1),
        limits: CircuitBreaker::default(),
        outlier: OutlierDetection::default(),
        endpoints: endpoints.into(),
        state: Arc::default(),
    }
}

fn healthy(lb_policy: LbPolicy, count: u8) -> Cluster {
    cluster(
        lb_policy,
        (1..=count)
            .map(|n| endpoint(n, 1, Health::Healthy))
            .collect(),
    )
}

/// Picks many times and says how often each endpoint was it.
fn share(cluster: &Cluster, avoid: &[SocketAddr], picks: u32) -> HashMap<SocketAddr, u32> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut share = HashMap::new();
    for _ in 0..picks {
        let picked = pick(cluster, None, avoid, NOW, &mut rng).expect("an endpoint");
        *share.entry(picked.address).or_default() += 1;
    }
    share
}

fn fail(cluster: &Cluster, index: usize, times: u32, now: u64) -> bool {
    (0..times).fold(false, |ejected, _| {
        let endpoint = &cluster.endpoints[index];
        report_connect_failure(cluster, endpoint, Unreachable::Failed, now) || ejected
    })
}

#[test]
fn no_endpoint_is_picked_from_an_empty_or_unhealthy_cluster() {
    let mut rng = fastrand::Rng::with_seed(1);
    for policy in [
        LbPolicy::LeastRequest,
        LbPolicy::RoundRobin,
        LbPolicy::Random,
    ] {
        assert!(pick(&healthy(policy, 0), None, &[], NOW, &mut rng).is_none());
        let unhealthy = cluster(policy, vec![endpoint(1, 1, Health::Unhealthy)]);
        assert!(pick(&unhealthy, None, &[], NOW, &mut rng).is_none());
    }
}

#[test]
fn least_request_leaves_the_busy_endpoint_alone() {
    let cluster = healthy(LbPolicy::LeastRequest, 2);
    let busy: Vec<_> = (0..10)
        .map(|_| ActiveGuard::new(&cluster, &cluster.endpoints[0]))
        .collect();
    let shares = share(&cluster, &[], 1_000);
    // The busy one is it only when both draws hit it.
    assert!((200..300).contains(&shares[&address(1)]), "{shares:?}");
    drop(busy);
    let shares = share(&cluster, &[], 1_000);
    assert!((450..550).contains(&shares[&address(1)]), "{shares:?}");
    assert_eq!(cluster.state.active.load(Relaxed), 0);
}

#[test]
fn every_policy_respects_weights() {
    for policy in [
        LbPolicy::LeastRequest,
        LbPolicy::RoundRobin,
        LbPolicy::Random,
    ] {
        let cluster = cluster(
            policy,
            vec![
                endpoint(1, 1, Health::Healthy),
                endpoint(2, 3, Health::Healthy),
            ],
        );
        let shares = share(&cluster, &[], 4_000);
        assert!(
            (900..1_100).contains(&shares[&address(1)]),
            "{policy:?}: {shares:?}"
        );
    }
}

#[test]
fn round_robin_takes_turns_whatever_the_common_weight() {
    for weight in [1, 100] {
        let endpoints = (1..=3)
            .map(|n| endpoint(n, weight, Health::Healthy))
            .collect();
        let cluster = cluster(LbPolicy::RoundRobin, endpoints);
        let mut rng = fastrand::Rng::with_seed(1);
        let turns: Vec<_> = (0..6)
            .map(|_| {
                pick(&cluster, None, &[], NOW, &mut rng)
                    .expect("an endpoint")
                    .address
            })
            .collect();
        let expected: Vec<_> = [1, 2, 3, 1, 2, 3].map(address).to_vec();
        assert_eq!(turns, expected, "weight {weight}");
    }
}

#[test]
fn draining_and_tried_endpoints_are_used_only_if_nothing_better_is_there() {
    type Case<'a> = (&'a str, Vec<Arc<Endpoint>>, &'a [SocketAddr], &'a [u8]);
    let cases: &[Case<'_>] = &[
        (
            "healthy before draining",
            vec![
                endpoint(1, 1, Health::Healthy),
                endpoint(2, 1, Health::Draining),
            ],
            &[],
            &[1],
        ),
        (
            "fresh before tried",
            vec![
                endpoint(1, 1, Health::Healthy),
                endpoint(2, 1, Health::Healthy),
            ],
            &[address(1)],
            &[2],
        ),
        (
            "tried before draining",
            vec![
                endpoint(1, 1, Health::Healthy),
                endpoint(2, 1, Health::Draining),
            ],
            &[address(1)],
            &[1],
        ),
        (
            "draining before nothing",
            vec![
                endpoint(1, 1, Health::Unhealthy),
                endpoint(2, 1, Health::Draining),
            ],
            &[],
            &[2],
        ),
    ];
    for (name, endpoints, avoid, expected) in cases {
        let cluster = cluster(LbPolicy::Random, endpoints.clone());
        let mut picked: Vec<_> = share(&cluster, avoid, 100).into_keys().collect();
        picked.sort();
        assert_eq!(
            picked,
            expected.iter().map(|n| address(*n)).collect::<Vec<_>>(),
            "{name}"
        );
    }
}

#[test]
fn three_connect_failures_in_a_row_eject() {
    let cluster = healthy(LbPolicy::Random, 4);
    assert!(!fail(&cluster, 0, 2, NOW));
    report_connect_success(&cluster.endpoints[0]);
    assert!(
        !fail(&cluster, 0, 2, NOW),
        "a success in between starts the count again"
    );
    assert!(fail(&cluster, 0, 1, NOW));
    assert!(!share(&cluster, &[], 200).contains_key(&address(1)));
}

#[test]
fn an_ejection_ends_and_the_next_one_is_twice_as_long() {
    let cluster = healthy(LbPolicy::Random, 4);
    let first = &cluster.endpoints[0];
    assert!(fail(&cluster, 0, 3, NOW));
    assert!(is_ejected(first, NOW + 999));
    assert!(!is_ejected(first, NOW + 1_000));
    assert!(
        fail(&cluster, 0, 1, NOW + 1_000),
        "still failing: one more is enough"
    );
    assert!(is_ejected(first, NOW + 2_999));
    assert!(!is_ejected(first, NOW + 3_000));
    let mut now = NOW + 3_000;
    for _ in 0..70 {
        now += 30_000;
        fail(&cluster, 0, 1, now);
    }
    assert!(
        !is_ejected(first, now + 30_000),
        "no ejection is longer than the limit"
    );
    report_connect_success(first);
    assert!(!is_ejected(first, now));
}

#[test]
fn one_request_at_a_time_finds_out_whether_an_endpoint_is_back() {
    for policy in [
        LbPolicy::LeastRequest,
        LbPolicy::RoundRobin,
        LbPolicy::Random,
    ] {
        let cluster = healthy(policy, 2);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut of_the_first = |now| {
            let picks = (0..200).filter_map(|_| pick(&cluster, None, &[], now, &mut rng));
            let own = picks.filter(|picked| picked.address == address(1));
            own.count()
        };
        assert!(fail(&cluster, 0, 3, NOW));
        assert_eq!(of_the_first(NOW + 999), 0, "{policy:?}: it is ejected");
        assert_eq!(of_the_first(NOW + 1_000), 1, "{policy:?}");
        assert_eq!(of_the_first(NOW + 1_999), 0, "{policy:?}: one is at it");
        assert_eq!(
            of_the_first(NOW + 2_000),
            1,
            "{policy:?}: whoever was at it has gone without a word"
        );
        assert!(
            fail(&cluster, 0, 1, NOW + 2_500),
            "{policy:?}: it is not back"
        );
        assert_eq!(of_the_first(NOW + 4_499), 0, "{policy:?}");
        assert_eq!(of_the_first(NOW + 4_500), 1, "{policy:?}");
        report_answer(&cluster.endpoints[0]);
        assert!(of_the_first(NOW + 4_500) > 50, "{policy:?}: it is back");
    }
}

#[test]
fn an_answer_from_before_an_ejection_does_not_end_it() {
    let cluster = healthy(LbPolicy::Random, 2);
    assert!(fail(&cluster, 0, 3, NOW));
    report_answer(&cluster.endpoints[0]);
    assert!(is_ejected(&cluster.endpoints[0], NOW));
}

#[test]
fn at_most_half_of_the_endpoints_are_ejected() {
    let cluster = healthy(LbPolicy::Random, 4);
    let outcomes: Vec<_> = (0..4).map(|index| fail(&cluster, index, 5, NOW)).collect();
    assert_eq!(outcomes, [true, true, false, false]);
    let single = healthy(LbPolicy::Random, 1);
    assert!(
        !fail(&single, 0, 50, NOW),
        "a single endpoint is never ejected"
    );
}

#[test]
fn all_but_one_are_ejected_where_the_sidecar_itself_has_found_them_silent() {
    let cluster = healthy(LbPolicy::Random, 3);
    let silent = |index: usize| {
        let endpoint = &cluster.endpoints[index];
        let report = || report_connect_failure(&cluster, endpoint, Unreachable::Silent, NOW);
        (0..3).fold(false, |ejected, _| report() || ejected)
    };
    assert_eq!([silent(0), silent(1), silent(2)], [true, true, false]);
    assert_eq!(share(&cluster, &[], 10)[&address(3)], 10);
}

#[test]
fn ejected_endpoints_are_used_when_nothing_else_is_left() {
    let cluster = healthy(LbPolicy::LeastRequest, 2);
    assert!(fail(&cluster, 0, 3, NOW));
    // The other endpoint went away with a later config.
    let shrunk = Cluster {
        endpoints: cluster.endpoints.iter().take(1).cloned().collect(),
        ..cluster
    };
    assert_eq!(share(&shrunk, &[], 10)[&address(1)], 10);
}

#[test]
fn an_endpoint_that_fails_gets_little_traffic_until_it_stops() {
    for policy in [
        LbPolicy::LeastRequest,
        LbPolicy::RoundRobin,
        LbPolicy::Random,
    ] {
        let cluster = healthy(policy, 3);
        // The endpoints that serve are busy, as they are where one fails at once.
        let _busy: Vec<_> = (0..30)
            .map(|n| ActiveGuard::new(&cluster, &cluster.endpoints[1 + n % 2]))
            .collect();
        let failing = &cluster.endpoints[0];
        let mut rng = fastrand::Rng::with_seed(7);
        let mut failures = 0;
        for now in NOW..NOW + 1_000 {
            let picked = pick(&cluster, None, &[], now, &mut rng).expect("an endpoint");
            if picked.address == failing.address {
                failures += 1;
                report_failed_response(picked, now);
            }
        }
        assert!((2..40).contains(&failures), "{policy:?}: {failures}");
        assert!(failing.state.troubled_until.load(Relaxed) <= NOW + 2_000);
        let later = NOW + 2_000;
        let again = (0..1_000)
            .filter(|_| {
                let picked = pick(&cluster, None, &[], later, &mut rng).expect("an endpoint");
                picked.address == failing.address
            })
            .count();
        assert!(again > 300, "{policy:?}: {again}");
    }
}

#[test]
fn where_all_endpoints_fail_they_share_the_traffic() {
    let cluster = healthy(LbPolicy::Random, 2);
    for endpoint in cluster.endpoints.iter() {
        (0..9).for_each(|_| report_failed_response(endpoint, NOW));
    }
    let shares = share(&cluster, &[], 1_000);
    assert!((450..550).contains(&shares[&address(1)]), "{shares:?}");
}

/// A cluster that hashes, with endpoints of these numbers.
fn hashing(numbers: impl IntoIterator<Item = u8>) -> Cluster {
    let endpoints = numbers
        .into_iter()
        .map(|n| endpoint(n, 1, Health::Healthy))
        .collect();
    hashing_over(endpoints)
}

fn hashing_over(endpoints: Vec<Arc<Endpoint>>) -> Cluster {
    Cluster {
        endpoints: Endpoints::with_ring(endpoints),
        ..cluster(LbPolicy::ConsistentHash, Vec::new())
    }
}

/// The endpoint of each of many clients.
fn of_clients(cluster: &Cluster, avoid: &[SocketAddr]) -> Vec<SocketAddr> {
    // Whatever the random numbers.
    let mut rng = fastrand::Rng::new();
    let clients = (0..3_000_u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        of_client([10, 244, high, low].into())
    });
    clients
        .map(|key| {
            let picked = pick(cluster, Some(key), avoid, NOW, &mut rng);
            picked.expect("an endpoint").address
        })
        .collect()
}

#[test]
fn a_client_stays_with_one_endpoint_and_clients_are_spread() {
    let cluster = hashing(1..=3);
    let first = of_clients(&cluster, &[]);
    assert_eq!(
        of_clients(&cluster, &[]),
        first,
        "it depends on nothing else"
    );
    for n in 1..=3 {
        let share = first.iter().filter(|of| **of == address(n)).count();
        assert!((750..1_250).contains(&share), "{n}: {share}");
    }
}

#[test]
fn shares_of_clients_follow_the_weights() {
    let endpoints = (1..=4).map(|n| endpoint(n, u32::from(n) * 10, Health::Healthy));
    let found = of_clients(&hashing_over(endpoints.collect()), &[]);
    for n in 1..=4 {
        let share = found.iter().filter(|of| **of == address(n)).count();
        let fair = 300 * usize::from(n);
        assert!(
            (fair * 7 / 10..fair * 13 / 10).contains(&share),
            "{n}: {share}"
        );
    }
}

#[test]
fn without_a_hash_any_endpoint_will_do_and_other_policies_do_not_hash() {
    let shares = share(&hashing(1..=3), &[], 3_000);
    assert!(
        shares.values().all(|share| (900..1_100).contains(share)),
        "{shares:?}"
    );
    let picked = of_clients(&healthy(LbPolicy::Random, 3), &[]);
    assert_ne!(picked, of_clients(&healthy(LbPolicy::Random, 3), &[]));
}

/// Who has moved away from where.
fn moved(before: &[SocketAddr], after: &[SocketAddr]) -> Vec<(SocketAddr, SocketAddr)> {
    let both = before.iter().copied().zip(after.iter().copied());
    both.filter(|(before, after)| before != after).collect()
}

#[test]
fn when_an_endpoint_leaves_only_its_clients_move_and_they_spread() {
    let before = of_clients(&hashing(1..=5), &[]);
    let of_third = before.iter().filter(|of| **of == address(3)).count();
    let draining = (1..=5).map(|n| match n {
        3 => endpoint(n, 1, Health::Draining),
        n => endpoint(n, 1, Health::Healthy),
    });
    let ejected = hashing(1..=5);
    assert!(fail(&ejected, 2, 3, NOW));
    let cases = [
        ("gone", of_clients(&hashing([1, 2, 4, 5]), &[])),
        (
            "draining",
            of_clients(&hashing_over(draining.collect()), &[]),
        ),
        ("ejected", of_clients(&ejected, &[])),
        ("tried", of_clients(&hashing(1..=5), &[address(3)])),
    ];
    for (name, after) in cases {
        let moved = moved(&before, &after);
        assert_eq!(moved.len(), of_third, "{name}");
        assert!(moved.iter().all(|(from, _)| *from == address(3)), "{name}");
        for n in [1, 2, 4, 5] {
            let taken = moved.iter().filter(|(_, to)| *to == address(n)).count();
            assert!(
                taken * 10 > of_third,
                "{name}: {n} took {taken} of {of_third}"
            );
        }
    }
    report_connect_success(&ejected.endpoints[2]);
    assert_eq!(
        of_clients(&ejected, &[]),
        before,
        "back, and all is as before"
    );
}

#[test]
fn failed_responses_do_not_end_an_affinity() {
    let cluster = hashing(1..=3);
    let before = of_clients(&cluster, &[]);
    (0..9).for_each(|_| report_failed_response(&cluster.endpoints[0], NOW));
    assert_eq!(of_clients(&cluster, &[]), before);
}

#[test]
fn clients_stay_even_where_every_endpoint_is_ejected_or_tried() {
    let mut cluster = hashing(1..=3);
    cluster.outlier.max_ejection_percent = 100;
    for index in 0..3 {
        assert!(fail(&cluster, index, 3, NOW));
    }
    let all = [1, 2, 3].map(address);
    for (cluster, avoid) in [(&cluster, &[][..]), (&hashing(1..=3), &all[..])] {
        let found = of_clients(cluster, avoid);
        assert_eq!(of_clients(cluster, avoid), found);
        for n in 1..=3 {
            let share = found.iter().filter(|of| **of == address(n)).count();
            assert!((750..1_250).contains(&share), "{n}: {share}");
        }
    }
}

#[test]
fn what_ejected_endpoints_do_not_get_is_shared_evenly() {
    for policy in [
        LbPolicy::LeastRequest,
        LbPolicy::RoundRobin,
        LbPolicy::Random,
    ] {
        // With most of them out, the quick way often finds nobody.
        for out in [1, 5, 18] {
            let mut cluster = healthy(policy, 20);
            cluster.outlier.max_ejection_percent = 100;
            for index in 0..out {
                assert!(fail(&cluster, index, 3, NOW));
            }
            let left = 20 - u32::try_from(out).expect("a small number");
            let shares = share(&cluster, &[], left * 1_000);
            assert_eq!(shares.len(), left as usize, "{policy:?} {out}");
            assert!(
                shares.values().all(|share| (870..1_130).contains(share)),
                "{policy:?} {out}: {shares:?}"
            );
        }
    }
}

#[test]
fn what_ejected_endpoints_do_not_get_is_shared_by_weight() {
    for policy in [
        LbPolicy::LeastRequest,
        LbPolicy::RoundRobin,
        LbPolicy::Random,
    ] {
        let endpoints = (1..=6).map(|n| endpoint(n, u32::from(n), Health::Healthy));
        let cluster = cluster(policy, endpoints.collect());
        assert!(fail(&cluster, 3, 3, NOW));
        assert!(fail(&cluster, 5, 3, NOW));
        let shares = share(&cluster, &[], 11_000);
        for n in [1, 2, 3, 5] {
            let (share, fair) = (shares[&address(n)], u32::from(n) * 1_000);
            assert!(
                (fair * 9 / 10..fair * 11 / 10).contains(&share),
                "{policy:?}: {shares:?}"
            );
        }
    }
}
