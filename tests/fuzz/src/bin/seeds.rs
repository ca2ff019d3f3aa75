//! Writes the seeds that are no text: what the control plane says about manifests.
//!
//! `seeds CORPUS MANIFEST...` writes each resource for `xds_decode` and the whole conversation for `xds_client`.

use std::collections::BTreeSet;
use std::path::Path;

// Its counters are what ours was compiled for.
use libfuzzer_sys as _;

use tulle_control::store::{MeshSettings, Store};
use tulle_control::translate::{ClientKind, ProxyView, names, resource};
use tulle_fuzz::input::seed;
use tulle_proxy::fuzz::xds::to_save;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::prost::Message as _;

const NODE: &str = "sidecar~10.1.0.9~web-1.shop~shop.svc.cluster.local";

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let corpus = arguments.next().expect("a folder for the seeds");
    let corpus = Path::new(&corpus);
    for folder in ["xds_decode", "xds_client"] {
        std::fs::create_dir_all(corpus.join(folder))?;
    }
    for manifest in arguments {
        let text = std::fs::read_to_string(&manifest)?;
        let (events, problems) = tulle_control::fuzz::manifest(&text, false);
        assert!(problems.is_empty(), "{problems:?}");
        let (store, mut writer) = Store::new(MeshSettings::default());
        writer.apply(events);
        let world = store.world();
        let view = match world.pods().next() {
            Some(pod) => ProxyView::of_pod(&world, ClientKind::Tulle, pod),
            None => ProxyView::of_kind(ClientKind::Tulle),
        };
        let mut wanted = Vec::new();
        for name in names(&world, &view, ResourceType::Listener) {
            wanted.push((ResourceType::Listener, name));
        }
        for name in names(&world, &view, ResourceType::Cluster) {
            for kind in [
                ResourceType::Cluster,
                ResourceType::Endpoints,
                ResourceType::Route,
            ] {
                wanted.push((kind, name.clone()));
            }
        }
        let ips = world.pods().flat_map(|pod| &pod.ips);
        wanted.extend(ips.map(|ip| (ResourceType::Address, format!("/{ip}"))));
        wanted.sort();
        let mut responses: Vec<DeltaDiscoveryResponse> = Vec::new();
        let mut written = BTreeSet::new();
        for (kind, name) in wanted {
            let Some(bytes) = resource(&world, &view, kind, &name) else {
                continue;
            };
            let resource = Resource {
                name,
                version: "1".to_owned(),
                resource: Some(Any {
                    type_url: kind.type_url().to_owned(),
                    value: bytes.to_vec(),
                }),
                ..Default::default()
            };
            let bytes = resource.encode_to_vec();
            if written.insert(seed(&bytes)) {
                let file = format!(
                    "xds_decode/{}-{:08x}",
                    kind.short_name(),
                    seed(&bytes) as u32
                );
                std::fs::write(corpus.join(file), &bytes)?;
            }
            match responses
                .last_mut()
                .filter(|last| last.type_url == kind.type_url())
            {
                Some(last) => last.resources.push(resource),
                None => responses.push(DeltaDiscoveryResponse {
                    type_url: kind.type_url().to_owned(),
                    resources: vec![resource],
                    nonce: kind.short_name().to_owned(),
                    ..Default::default()
                }),
            }
        }
        let saved = to_save(NODE, responses)?;
        let name = format!("xds_client/{:08x}", seed(&saved) as u32);
        std::fs::write(corpus.join(name), saved)?;
    }
    Ok(())
}
