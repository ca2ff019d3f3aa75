//! Envoys, which refuse a response as a whole and name all that they want again and again.

use super::*;

/// An Envoy as which the client's pod may speak.
async fn envoy(plane: &Plane) -> Client {
    let id = node_id("shop", "web-1", IP).replace("sidecar~", "envoy~");
    Client::open_as(plane, &id).await
}

#[tokio::test]
async fn a_route_table_that_envoy_refuses_costs_no_other_its_update() {
    let (mut plane, _) = plane_and_client().await;
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    let mut envoy = envoy(&plane).await;
    envoy.want(Rds, &[CLUSTER, LATER]).await;
    let both = envoy.next().await;
    assert_eq!(summary(&both), ("RDS", names(&[CLUSTER, LATER])));
    envoy.refuse(&both, "no such flag").await;
    // It may be any of them: each comes again, alone.
    let first = envoy.next().await;
    assert_eq!(summary(&first), ("RDS", names(&[CLUSTER])));
    envoy.refuse(&first, "no such flag").await;
    assert_eq!(envoy.take().await, ("RDS", names(&[LATER])));
    envoy.expect_silence().await;
    let shown = plane.admin("/debug/proxies").await;
    let shown: String = shown.split_whitespace().collect();
    let rejected = format!("\"rejected\":[\"{CLUSTER}\"],\"last_error\":\"nosuchflag\"");
    assert!(shown.contains(&rejected), "{shown}");
}

#[tokio::test]
async fn an_envoy_names_all_that_it_wants_a_few_times_however_much_there_is() {
    const SERVICES: u16 = 2_000;
    let (mut plane, _) = plane_and_client().await;
    let name = |i: u16| format!("s{i}");
    let more = (0..SERVICES).map(|i| service(&name(i), [10, 2, (i >> 8) as u8, i as u8]));
    plane.writer.apply(more.collect());
    let of = |i: u16| format!("outbound|80||{}.shop.svc.cluster.local", name(i));
    let wanted: Vec<String> = (0..SERVICES).map(of).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let mut envoy = envoy(&plane).await;
    for kind in [Eds, Rds] {
        envoy.want(kind, &wanted).await;
        let (mut tables, mut responses) = (0, 0);
        while tables < wanted.len() {
            // Each acceptance says again what it wants.
            let (_, names) = envoy.take().await;
            tables += names.len();
            responses += 1;
        }
        assert_eq!(tables, wanted.len());
        assert!(responses <= 5, "{kind:?}: {responses} responses");
    }
    envoy.expect_silence().await;
}

#[tokio::test]
async fn naming_again_what_it_wants_costs_a_client_nothing_and_a_long_text_does() {
    const SERVICES: u16 = 1_000;
    const WAITS: &str = "tulle_control_limits_reached_total{limit=\"pace\"} ";
    // For what it asks for first, and not for the bytes of its acceptances.
    let limits = Limits {
        names_a_second: 1,
        names_at_once: 1_500,
        ..limits()
    };
    let mut plane = Plane::start_with(limits, |_| {}).await;
    plane.pod("shop", "web-1", "web", IP);
    plane
        .writer
        .apply(vec![service("api", VIP), endpoints("api", &[])]);
    let mut client = Client::open(&plane).await;
    let of = |i: u16| format!("outbound|80||s{i}.shop.svc.cluster.local");
    let wanted: Vec<String> = (0..SERVICES).map(of).collect();
    let mut wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    wanted.push(CLUSTER);
    client.want(Eds, &wanted).await;
    assert_eq!(client.take().await, ("EDS", names(&[CLUSTER])));
    for last in 1..=100 {
        plane
            .writer
            .apply(vec![endpoints("api", &[[10, 0, 1, last]])]);
        assert_eq!(client.take().await, ("EDS", names(&[CLUSTER])));
    }
    client.expect_silence().await;
    let metrics = plane.admin("/metrics").await;
    assert!(!metrics.contains(WAITS), "{metrics}");
    plane.writer.apply(vec![endpoints("api", &[[10, 0, 2, 1]])]);
    let refused = client.next().await;
    client.refuse(&refused, &"x".repeat(2 << 20)).await;
    plane.measures(WAITS).await;
}

fn lists_later((kind, names): (&str, Vec<String>)) -> bool {
    assert_eq!(kind, "CDS");
    names.iter().any(|name| name == LATER)
}

#[tokio::test]
async fn a_cluster_that_is_gone_stays_until_envoy_has_taken_the_tables_that_came_before() {
    let (mut plane, _) = plane_and_client().await;
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    let mut envoy = envoy(&plane).await;
    envoy.want(Cds, &[]).await;
    assert!(lists_later(envoy.take().await));
    envoy.want(Rds, &[CLUSTER, LATER]).await;
    let both = envoy.next().await;
    assert_eq!(summary(&both), ("RDS", names(&[CLUSTER, LATER])));
    plane.writer.apply(vec![delete(Kind::Service, "later")]);
    envoy.expect_silence().await;
    // What it did not take may have been meant to name the cluster no more.
    envoy.refuse(&both, "no such flag").await;
    let again = envoy.next().await;
    assert_eq!(summary(&again), ("RDS", names(&[CLUSTER])));
    envoy.expect_silence().await;
    envoy.accept(&again).await;
    assert!(!lists_later(envoy.take().await));
    envoy.expect_silence().await;
}

#[tokio::test]
async fn a_cluster_that_is_gone_stays_while_tables_wait_that_may_name_it() {
    let (mut plane, _) = plane_and_client().await;
    plane.writer.apply(vec![service("later", [10, 1, 0, 9])]);
    let mut envoy = envoy(&plane).await;
    envoy.want(Cds, &[]).await;
    assert!(lists_later(envoy.take().await));
    envoy.want(Rds, &[CLUSTER]).await;
    let mut late = vec![envoy.next().await];
    let mut sticky = false;
    // It takes its time with its tables.
    while late.len() < 16 {
        sticky = !sticky;
        plane.writer.apply(vec![changed_service(sticky)]);
        assert!(lists_later(envoy.take().await));
        let tables = envoy.next().await;
        assert_eq!(summary(&tables), ("RDS", names(&[CLUSTER])));
        late.push(tables);
    }
    plane.writer.apply(vec![
        changed_service(!sticky),
        delete(Kind::Service, "later"),
    ]);
    assert!(lists_later(envoy.take().await));
    envoy.expect_silence().await;
    // One reply makes room for the tables, and then what they may have named can go.
    envoy.accept(&late[0]).await;
    assert_eq!(envoy.take().await, ("RDS", names(&[CLUSTER])));
    assert!(!lists_later(envoy.take().await));
    envoy.expect_silence().await;
}
