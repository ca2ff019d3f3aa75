//! What `*` means while the world changes: who hears of changes by subject has what who asks anew gets.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::store::{Object, StoreWriter};

/// Documents that may be there in one of several forms, or not at all.
const SLOTS: [&[&str]; 9] = [
    &[
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 81}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8081, appProtocol: grpc}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {type: ExternalName, externalName: elsewhere.example, ports: [{port: 80}]}}",
    ],
    &[
        "{apiVersion: v1, kind: Service, metadata: {name: also, namespace: shop}, spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 90}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: also, namespace: shop}, spec: {clusterIP: 10.0.0.2, ports: [{port: 80}]}}",
        "{apiVersion: v1, kind: Service, metadata: {name: also, namespace: shop}, spec: {clusterIP: None, ports: [{port: 80}]}}",
    ],
    &[
        "{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, tulle.dev/proxied: 'true'}}, spec: {serviceAccountName: web, nodeName: n1, containers: []}, status: {podIP: 10.1.0.1}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: other}}, spec: {serviceAccountName: other, containers: []}, status: {podIP: 10.1.0.1}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web}}, spec: {containers: []}, status: {podIP: 10.1.0.3}}",
    ],
    &[
        "{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web}}, spec: {containers: []}, status: {podIP: 10.1.0.2}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web, tulle.dev/proxied: 'true'}}, spec: {serviceAccountName: web, containers: []}, status: {podIP: 10.1.0.1}}",
    ],
    &[
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]}",
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{name: http, port: 8081}, {name: tcp, port: 8082}], endpoints: [{addresses: [10.1.0.2], conditions: {ready: false}}]}",
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: also}}, addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.1.0.3]}]}",
    ],
    &[
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: also-a, namespace: shop, labels: {kubernetes.io/service-name: also}}, addressType: IPv4, ports: [{name: '', port: 8080}], endpoints: [{addresses: [10.1.0.1]}]}",
    ],
    &[
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: all, namespace: shop}, spec: {mtls: {mode: STRICT}}}",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: all, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}}",
    ],
    &[
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: also, port: 80}]}]}}",
    ],
    &[
        "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}}",
        "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: b}}}",
    ],
];

/// A client that wants all of a type.
struct Wildcard {
    view: ProxyView,
    kind: ResourceType,
    held: BTreeMap<String, Bytes>,
}

impl Wildcard {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for kind in [ClientKind::Tulle, ClientKind::Envoy, ClientKind::Grpc] {
            for pod in ["web-1", "web-2"] {
                let view = ProxyView {
                    pod: Some(ObjectKey::new("shop", pod)),
                    ..client("shop")
                };
                all.extend(
                    [ResourceType::Listener, ResourceType::Cluster].map(|resource| Self {
                        view: ProxyView {
                            kind,
                            ..view.clone()
                        },
                        kind: resource,
                        held: BTreeMap::new(),
                    }),
                );
            }
        }
        all
    }

    /// Looks at what it is told to look at.
    fn hear(&mut self, before: &World, after: &World, affected: &Affected) {
        let mut told = BTreeSet::new();
        match affected.reach(self.kind) {
            Reach::Nothing => {}
            Reach::Everything => {
                told.extend(self.held.keys().cloned());
                told.extend(names(after, &self.view, self.kind));
            }
            Reach::Subjects(subjects) => {
                for subject in &subjects {
                    if affected.touches(self.kind, subject, &self.view) {
                        for world in [before, after] {
                            told.extend(names_about(world, &self.view, self.kind, subject));
                        }
                    }
                }
            }
        }
        for name in told {
            let listed = is_listed(after, &self.view, self.kind, &name);
            let found = listed
                .then(|| resource(after, &self.view, self.kind, &name))
                .flatten();
            match found {
                Some(found) => drop(self.held.insert(name, found)),
                None => drop(self.held.remove(&name)),
            }
        }
    }

    /// It has what it would get if it asked now.
    fn check(&self, world: &World) {
        let names = names(world, &self.view, self.kind);
        for name in &names {
            assert!(
                is_listed(world, &self.view, self.kind, name),
                "{name} is listed"
            );
        }
        let found = names.into_iter().filter_map(|name| {
            let found = resource(world, &self.view, self.kind, &name)?;
            Some((name, found))
        });
        let expected: BTreeMap<_, _> = found.collect();
        let kind = self.kind.short_name();
        assert!(
            self.held.keys().eq(expected.keys()),
            "{kind} of {:?}: {:?}, not {:?}",
            self.view,
            self.held.keys(),
            expected.keys()
        );
        for (name, bytes) in &expected {
            assert!(
                self.held.get(name) == Some(bytes),
                "{kind} of {:?}: {name} is an older one",
                self.view
            );
        }
    }
}

fn object(slot: usize, form: usize) -> Option<Object> {
    let text = SLOTS[slot].get(form)?;
    let mut all = objects(text);
    assert_eq!(all.len(), 1, "{text}");
    all.pop()
}

/// Puts a slot's document there in a form, or takes it away.
fn step(writer: &mut StoreWriter, slot: usize, form: usize) -> BTreeSet<crate::store::ObjectRef> {
    let any = object(slot, 0).expect("each slot has a form");
    let reference = any.reference();
    let event = match object(slot, form) {
        Some(object) => Event::Apply(object),
        None => Event::Delete(reference.clone()),
    };
    writer.apply(vec![event]);
    BTreeSet::from([reference])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn who_wants_all_is_told_of_each_change_and_has_what_who_asks_anew_gets(
        steps in prop::collection::vec((0..SLOTS.len(), 0..5_usize), 1..40)
    ) {
        let (store, mut writer) = Store::new(MeshSettings::default());
        writer.set_synced();
        let mut before = store.world();
        let mut clients = Wildcard::all();
        for (slot, form) in steps {
            let changed = step(&mut writer, slot, form);
            let after = store.world();
            let affected = Affected::between(&before, &after, &changed);
            for client in &mut clients {
                client.hear(&before, &after, &affected);
                client.check(&after);
            }
            before = after;
        }
    }
}
