//! What clients are told, from manifests to decoded resources.

mod addresses;
mod change;
mod connections;
mod endpoints;
mod envoy;
mod grpc;
mod listing;
mod policies;
mod routes;

use std::fmt::Write;

use prost::Message;
use tulle_xds_proto::envoy::config::core::v3::HealthStatus;
use tulle_xds_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tulle_xds_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use tulle_xds_proto::envoy::config::route::v3::{RouteConfiguration, route};
use tulle_xds_proto::tulle::v1::Endpoint;
use tulle_xds_proto::{ENDPOINT_METADATA, unpack};

use super::*;
use crate::source::objects;
use crate::store::{Event, MeshSettings, Store};

const WEB: &str = "outbound|80||web.shop.svc.cluster.local";

const BASE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.0.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1, tulle.dev/proxied: \"true\"}}
spec: {serviceAccountName: web, nodeName: n1, containers: []}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {containers: []}
status: {podIP: 10.1.0.2}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2}}
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-1}}
";

fn world(text: &str) -> Arc<World> {
    world_of(objects(text))
}

fn world_of(objects: Vec<crate::store::Object>) -> Arc<World> {
    let (store, mut writer) = Store::new(MeshSettings::default());
    writer.apply(objects.into_iter().map(Event::Apply).collect());
    writer.set_synced();
    store.world()
}

fn client(namespace: &str) -> ProxyView {
    ProxyView {
        namespace: Some(namespace.into()),
        ..ProxyView::of_kind(ClientKind::Tulle)
    }
}

fn get<M: Message + Default>(
    world: &World,
    view: &ProxyView,
    kind: ResourceType,
    name: &str,
) -> Option<M> {
    let full = resource(world, view, kind, name);
    let part = resource(world, &view_for(world, view, kind, name), kind, name);
    assert_eq!(full, part, "{name}: the view's part decides");
    full.map(|bytes| M::decode(bytes).expect("encoded by us"))
}

/// Endpoints as `address health mtls`.
fn endpoints(world: &World, view: &ProxyView, name: &str) -> Vec<String> {
    let assignment: ClusterLoadAssignment =
        get(world, view, ResourceType::Endpoints, name).expect("known");
    let all = assignment
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints);
    all.map(|endpoint| {
        let text = format!("{:?}", endpoint.host_identifier);
        let address = text
            .split("address: \"")
            .nth(1)
            .and_then(|it| it.split('"').next())
            .unwrap_or_default();
        let metadata = endpoint
            .metadata
            .as_ref()
            .and_then(|it| it.typed_filter_metadata.get(ENDPOINT_METADATA));
        let mtls = metadata.is_some_and(|any| unpack::<Endpoint>(any).expect("ours").mtls);
        let health = HealthStatus::try_from(endpoint.health_status)
            .expect("known")
            .as_str_name();
        format!("{address} {health} {mtls}")
    })
    .collect()
}

/// Routes as `name -> clusters or what else happens`.
fn routes(world: &World, view: &ProxyView, name: &str) -> Vec<String> {
    let table: RouteConfiguration = get(world, view, ResourceType::Route, name).expect("known");
    assert_eq!(table.virtual_hosts.len(), 1);
    table.virtual_hosts[0]
        .routes
        .iter()
        .map(|it| format!("{} {}", it.name, action(it.action.as_ref())))
        .collect()
}

fn action(action: Option<&route::Action>) -> String {
    match action {
        Some(route::Action::Route(route)) => {
            match &route.cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => name.clone(),
                Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted
                    .clusters
                    .iter()
                    .fold(String::new(), |mut text, it| {
                        let weight = it.weight.as_ref().map_or(0, |weight| weight.value);
                        let name = it
                            .name
                            .trim_start_matches("outbound|80||")
                            .trim_end_matches(".svc.cluster.local");
                        let _ = write!(text, "{name}={weight};");
                        text
                    }),
                other => format!("{other:?}"),
            }
        }
        Some(route::Action::DirectResponse(answer)) => answer.status.to_string(),
        Some(route::Action::Redirect(redirect)) => format!("redirect {}", redirect.host_redirect),
        other => format!("{other:?}"),
    }
}

fn http_route(name: &str, namespace: &str, rules: &str) -> String {
    route_of("HTTPRoute", name, namespace, ", port: 80", rules)
}

/// A route of Service `web`; `parent` is what else its reference to the parent says.
fn route_of(kind: &str, name: &str, namespace: &str, parent: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: web, namespace: shop{parent}}}]\n  rules: {rules}\n"
    )
}
