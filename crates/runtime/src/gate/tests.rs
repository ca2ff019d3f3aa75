//! A few lines go through, whoever floods, and every one of the others is counted.

use std::net::Ipv4Addr;

use super::*;

/// One of many clients.
fn client(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a01_0000 + number))
}

#[tokio::test(start_paused = true)]
async fn a_few_lines_go_through_and_the_next_says_how_many_did_not() {
    let gate = Gate::default();
    let passed: Vec<_> = (0..100).filter_map(|_| gate.pass()).collect();
    assert_eq!(passed, [0; 5]);
    tokio::time::advance(NARROW_PACE.each).await;
    assert_eq!(gate.pass(), Some(95));
    assert_eq!(gate.pass(), None);
    assert_eq!(gate.close(), 1);
    assert_eq!(gate.close(), 0);
    tokio::time::advance(NARROW_PACE.each * 100).await;
    let passed: Vec<_> = (0..100).filter_map(|_| gate.pass()).collect();
    assert_eq!(passed, [0; 5], "a long silence saves nothing up");
}

#[tokio::test(start_paused = true)]
async fn each_kind_has_a_gate_of_its_own() {
    let gates = Gates::default();
    let pass = |kind| gates.pass(&kind, client(0));
    let passed: Vec<_> = (0..100).filter_map(|_| pass("often")).collect();
    assert_eq!(passed, [0; 5]);
    assert_eq!(pass("seldom"), Some(0));
    tokio::time::advance(NARROW_PACE.each).await;
    assert_eq!(pass("often"), Some(95));
}

#[tokio::test(start_paused = true)]
async fn the_lines_about_one_client_do_not_hide_those_about_others() {
    let gates = Gates::default();
    let passed: Vec<_> = (0..100)
        .filter_map(|_| gates.pass(&"often", client(0)))
        .collect();
    assert_eq!(passed, [0; 5]);
    // One or the other may come by the same gate.
    let others: Vec<_> = (1..=20)
        .filter_map(|number| gates.pass(&"often", client(number)))
        .collect();
    assert!(others.len() >= 10, "{others:?}");
    let unsaid = 95 + 20 - others.len() as u64;
    tokio::time::advance(NARROW_PACE.each).await;
    let last = gates.pass(&"often", client(0)).unwrap();
    assert_eq!(others.iter().sum::<u64>() + last, unsaid);
}

#[tokio::test(start_paused = true)]
async fn many_clients_have_no_more_lines_than_all_may_have() {
    let gates = Gates::default();
    let flood = || {
        let lines = (0..10_000).filter_map(|number| gates.pass(&"often", client(number)));
        lines.collect::<Vec<_>>()
    };
    assert_eq!(flood(), [0; 50]);
    tokio::time::advance(NARROW_PACE.each).await;
    let second = flood();
    assert_eq!(second.len(), 10);
    assert!(second[0] >= 10_000 - 50);
}

#[tokio::test(start_paused = true)]
async fn a_network_of_ipv6_is_one_client() {
    let gates = Gates::default();
    let address = |network: u64, host: u64| {
        let bits = u128::from(network) << 64 | u128::from(host);
        IpAddr::from(std::net::Ipv6Addr::from_bits(bits))
    };
    let own = (0..1_000).filter_map(|host| gates.pass(&"often", address(1, host)));
    assert_eq!(own.collect::<Vec<_>>(), [0; 5]);
    let others = (2..40).filter_map(|network| gates.pass(&"often", address(network, 1)));
    assert!(others.count() >= 20);
}

#[tokio::test(start_paused = true)]
async fn what_the_gate_for_all_keeps_back_is_no_line_of_its_client() {
    let gates = Gates::default();
    let flood = (0..10_000).filter_map(|number| gates.pass(&"often", client(number)));
    assert_eq!(flood.count(), 50);
    // None of these is charged to anybody.
    assert_eq!(gates.pass(&"often", client(1)), None);
    tokio::time::advance(WIDE_PACE.each * 50).await;
    for number in 0..20_000 {
        let _ = gates.pass(&"often", client(number));
    }
    let kinds = gates.kinds.load();
    let now = since(gates.begun);
    let charged: u64 = kinds["often"]
        .clients
        .iter()
        .map(|paid| {
            paid.0
                .load(Relaxed)
                .saturating_sub(now)
                .div_ceil(nanos(NARROW_PACE.each))
        })
        .sum();
    assert!(charged <= 100, "{charged}");
}

#[test]
fn of_lines_that_many_threads_would_write_each_is_written_or_counted() {
    const EACH: u64 = 10_000;
    let (gates, gate) = (Gates::default(), Gate::default());
    let told = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (gates, gate, told) = (&gates, &gate, &told);
            scope.spawn(move || {
                let pass = |_| {
                    let tell = |unsaid: Option<u64>| unsaid.map_or(0, |unsaid| unsaid + 1);
                    tell(gates.pass(&"often", client(thread))) + tell(gate.pass())
                };
                told.fetch_add((0..EACH).map(pass).sum(), Relaxed);
            });
        }
    });
    let left_out = gates.kinds.load()["often"].left_out.load(Relaxed);
    assert_eq!(told.load(Relaxed) + left_out + gate.close(), 4 * EACH * 2);
}
