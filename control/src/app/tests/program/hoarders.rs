//! What clients with a certificate make the program keep in memory, with requests that say more than anybody may ask.

use tonic::Status;
use tonic::transport::Channel;
use tulle_xds_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::*;

/// What all of them may cost in KiB, and what may be left of it once they have ended.
const COST: u64 = 160 << 10;
const RESIDUE: u64 = 16 << 10;

/// Names as short as so many can be.
fn names(many: usize) -> impl Iterator<Item = String> {
    (0..many).map(|i| format!("{i:x}"))
}

/// A request that comes with so many versions and names so many.
fn request(kind: ResourceType, versions: usize, subscribe: usize) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node(&node_id("shop", "web-1", [10, 0, 0, 1]))),
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names(subscribe).collect(),
        initial_resource_versions: names(versions).map(|name| (name, "1".to_owned())).collect(),
        ..Default::default()
    }
}

/// How often the program has counted all of these.
async fn counted(program: &Serving, what: &[&str]) -> usize {
    let metrics = get(program.admin, "/metrics").await;
    let of = |line: &str| {
        let it = what.iter().find_map(|what| line.strip_prefix(what))?;
        it.trim().parse::<usize>().ok()
    };
    metrics.lines().filter_map(of).sum()
}

/// Opens so many streams with a request each, one after the other, and waits until the program has read it.
async fn open_all(
    program: &Serving,
    channel: &Channel,
    request: &DeltaDiscoveryRequest,
    streams: usize,
) -> Result<Vec<Proxy>, Status> {
    const READ: [&str; 4] = [
        "tulle_xds ",
        "tulle_xds_refused_streams_total{reason=\"bad_message\"} ",
        "tulle_xds_refused_streams_total{reason=\"too_many_names\"} ",
        "tulle_control_limits_reached_total{limit=\"unfinished_requests\"} ",
    ];
    let before = counted(program, &READ).await;
    let mut open = Vec::new();
    for i in 1..=streams {
        let proxy = Proxy::open(channel.clone(), None).await?;
        proxy.send_raw(request.clone()).await;
        open.push(proxy);
        soon(async { while counted(program, &READ).await < before + i {} }).await;
    }
    Ok(open)
}

#[tokio::test]
async fn requests_that_say_too_much_take_little_memory_and_leave_none() {
    let lender = Plane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    put(dir.path(), "shop.yaml", SHOP);
    put(dir.path(), "slice.yaml", &slice("10.0.1.1"));
    let mut program = serving(&words(&lender.args(), dir.path())).await;
    let anonymous = lender.channel_to(program.xds, None).await;
    let token = lender.tokens.token("shop", "web", "web-1", "u1");
    let svid = certify_over(anonymous.expect("it listens"), &token).await;
    let svid = svid.expect("issued");
    let own = async || {
        let channel = lender.channel_to(program.xds, Some(svid.clone())).await;
        channel.expect("it listens")
    };
    let mut small = Proxy::open(own().await, None).await.expect("let in");
    small.send_raw(request(ResourceType::Endpoints, 0, 1)).await;
    small.next().await.expect("an answer");
    let began = std::time::Instant::now();
    // What is refused when it is read takes nothing that adds up; what waits does.
    for (name, request, streams) in [
        (
            "versions that no one may have",
            request(ResourceType::Cluster, 300_000, 0),
            2,
        ),
        (
            "names that no one may want",
            request(ResourceType::Endpoints, 0, 300_000),
            2,
        ),
        (
            "versions of what is not wanted",
            request(ResourceType::Endpoints, 50_000, 1),
            8,
        ),
        (
            "versions of all there is",
            request(ResourceType::Cluster, 50_000, 0),
            36,
        ),
    ] {
        let [peak, before] = ["VmHWM:", "VmRSS:"].map(|it| memory(&program.process, it));
        let streams = open_all(&program, &own().await, &request, streams).await;
        let cost = memory(&program.process, "VmHWM:").max(before) - before;
        eprintln!(
            "{:?} {name}: {before} KiB, peak {peak} KiB, {cost} KiB more",
            began.elapsed()
        );
        assert!(cost < COST, "{name}: {cost} KiB");
        drop(streams);
        soon(async { while counted(&program, &["tulle_xds "]).await > 1 {} }).await;
        let left = || memory(&program.process, "VmRSS:").saturating_sub(before);
        let all_back = async {
            while left() >= RESIDUE {
                tokio::task::yield_now().await;
            }
        };
        let given = tokio::time::timeout(SOON, all_back).await;
        eprintln!("{name}: {} KiB left", left());
        assert!(given.is_ok(), "{name}: {} KiB left", left());
    }
    assert_eq!(program.terminate().await, Some(0));
}
