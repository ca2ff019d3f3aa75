//! The whole source.

use super::*;
use crate::source::KubernetesSource;
use crate::source::kubernetes::kinds::OPTIONAL;

/// What is asked for at the start.
const PATHS: [&str; 7] = [
    "/api/v1/namespaces",
    "/api/v1/nodes",
    "/api/v1/pods",
    "/api/v1/services",
    "/api/v1/serviceaccounts",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
];

#[tokio::test]
async fn everything_has_been_read_when_every_kind_was_listed() {
    let (mut rig, writer) = Rig::empty().await;
    let mut source = KubernetesSource::new(rig.server.client());
    source.settings = SETTINGS;
    source.spawn(&rig.tasks, writer);
    let mut open = Vec::new();
    let mut last = None;
    for path in PATHS {
        let definitions = path == PATHS[6];
        // Those of routes and policies, and that of what is stored of them.
        for _ in 0..if definitions { OPTIONAL.len() + 1 } else { 1 } {
            let asked = rig.server.asked_for(path).await;
            let metadata = ["namespaces", "nodes", "serviceaccounts"];
            let metadata = metadata.iter().any(|plural| asked.target.contains(plural));
            assert_eq!(
                asked.accept.contains("PartialObjectMetadata"),
                metadata,
                "{}",
                asked.target
            );
            if path.ends_with("pods") {
                let selector = asked.parameter("fieldSelector");
                assert!(selector.contains("Succeeded"), "{}", asked.target);
            }
            let mut stream = asked.begin().await;
            if path.ends_with("services") {
                last = Some(stream);
                continue;
            }
            stream.complete("10").await;
            open.push(stream);
        }
    }
    let mut last = last.expect("they were asked for");
    last.event("ADDED", &service("a", 1)).await;
    assert!(!rig.store.world().synced());
    last.complete("10").await;
    let world = rig.until(World::synced).await;
    assert_eq!(names(&world), ["a"]);
}
