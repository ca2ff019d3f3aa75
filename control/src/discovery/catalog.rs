//! Every resource of the current world, encoded once per view and shared by all streams.
//!
//! An update swaps the world and drops what it affects under one lock, and a lookup that straddles an update is not
//! kept: the cache never mixes two worlds. Names that do not exist are not remembered, so a client cannot fill it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use tulle_xds_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret::Type,
};
use tulle_xds_proto::prost::Message;

use super::metrics::Metrics;
use super::resource::{Encoded, Name};
use crate::store::World;
use crate::translate::{self, Affected, ProxyView, ROOT_CA, Reach, Subject};

/// Names about one address or pod that are kept: any port of it may be asked for.
const PORTS: usize = 64;

/// The encoded resources.
#[derive(Debug)]
pub(crate) struct Catalog {
    state: RwLock<State>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    world: Arc<World>,
    generation: u64,
    entries: HashMap<ResourceType, Shelf>,
    bundle: Option<Arc<Encoded>>,
}

/// The encoded resources of one type: by what they are about, so that a change need not look at all others.
type Shelf = HashMap<Subject, HashMap<Name, Vec<(ProxyView, Arc<Encoded>)>>>;

impl Catalog {
    pub(crate) fn new(world: Arc<World>, metrics: Metrics) -> Self {
        let state = State {
            world,
            generation: 0,
            entries: HashMap::new(),
            bundle: None,
        };
        Self {
            state: RwLock::new(state),
            metrics,
        }
    }

    /// The current world.
    pub(crate) fn world(&self) -> Arc<World> {
        self.state.read().world.clone()
    }

    /// Grows with every update; shown to clients as the version of the whole.
    pub(crate) fn generation(&self) -> u64 {
        self.state.read().generation
    }

    /// Replaces the world, and forgets what may differ in it.
    pub(crate) fn update(&self, world: Arc<World>, affected: &Affected) {
        let mut state = self.state.write();
        state.world = world;
        state.generation += 1;
        for (kind, shelf) in &mut state.entries {
            let forget = |subject: &Subject, named: &mut HashMap<Name, Vec<(ProxyView, _)>>| {
                named.retain(|_, views| {
                    views.retain(|(view, _)| !affected.touches(*kind, subject, view));
                    !views.is_empty()
                });
                !named.is_empty()
            };
            match affected.reach(*kind) {
                Reach::Nothing => {}
                Reach::Everything => shelf.retain(forget),
                Reach::Subjects(subjects) => {
                    for subject in subjects {
                        if let Some(named) = shelf.get_mut(&subject)
                            && !forget(&subject, named)
                        {
                            shelf.remove(&subject);
                        }
                    }
                }
            }
        }
    }

    /// Replaces the trust bundle (PEM); says whether it differs.
    pub(crate) fn set_bundle(&self, pem: &str) -> bool {
        let bundle = Arc::new(Encoded::new(ResourceType::Secret, root_ca(pem)));
        let mut state = self.state.write();
        let differs = state
            .bundle
            .as_ref()
            .is_none_or(|known| known.version != bundle.version);
        state.bundle = Some(bundle);
        state.generation += u64::from(differs);
        differs
    }

    /// A resource as this view sees it.
    pub(crate) fn lookup(
        &self,
        view: &ProxyView,
        kind: ResourceType,
        name: &Name,
    ) -> Option<Arc<Encoded>> {
        let (world, generation, subject, shared) = {
            let state = self.state.read();
            if kind == ResourceType::Secret {
                return if &**name == ROOT_CA {
                    state.bundle.clone()
                } else {
                    None
                };
            }
            let shared = translate::view_for(&state.world, view, kind, name);
            let subject = Subject::of(state.world.mesh(), kind, name, &shared);
            let known = state
                .entries
                .get(&kind)
                .and_then(|shelf| shelf.get(&subject)?.get(name));
            if let Some((_, encoded)) = known
                .into_iter()
                .flatten()
                .find(|(view, _)| *view == shared)
            {
                return Some(encoded.clone());
            }
            (state.world.clone(), state.generation, subject, shared)
        };
        let encoded = Arc::new(Encoded::new(
            kind,
            translate::resource(&world, &shared, kind, name)?,
        ));
        self.metrics.encoded(kind);
        let mut state = self.state.write();
        if state.generation != generation {
            // The world moved on meanwhile. The stream will be told if that concerns it.
            return Some(encoded);
        }
        let shelf = state.entries.entry(kind).or_default();
        let is_any_port = matches!(subject, Subject::Address(_) | Subject::Pod(_));
        let named = shelf.entry(subject).or_default();
        if is_any_port && named.len() >= PORTS && !named.contains_key(name) {
            named.clear();
        }
        let views = named.entry(name.clone()).or_default();
        if let Some((_, known)) = views.iter().find(|(view, _)| *view == shared) {
            return Some(known.clone());
        }
        views.push((shared, encoded.clone()));
        Some(encoded)
    }

    /// A resource as this view sees it, if it is one of all that it may see.
    pub(crate) fn lookup_listed(
        &self,
        view: &ProxyView,
        kind: ResourceType,
        name: &Name,
    ) -> Option<Arc<Encoded>> {
        if !translate::is_listed(&self.world(), view, kind, name) {
            return None;
        }
        self.lookup(view, kind, name)
    }

    /// Names of all resources that this view may see.
    pub(crate) fn names(&self, view: &ProxyView, kind: ResourceType) -> Vec<Name> {
        let world = self.world();
        translate::names(&world, view, kind)
            .into_iter()
            .map(Name::from)
            .collect()
    }
}

fn root_ca(pem: &str) -> Bytes {
    let roots = DataSource {
        specifier: Some(Specifier::InlineString(pem.to_owned())),
        ..DataSource::default()
    };
    let context = CertificateValidationContext {
        trusted_ca: Some(roots),
        ..CertificateValidationContext::default()
    };
    let secret = Secret {
        name: ROOT_CA.to_owned(),
        r#type: Some(Type::ValidationContext(context)),
    };
    secret.encode_to_vec().into()
}
