//! The live identity of a process: its SVID, the roots it trusts, and the TLS configurations made of both.
//!
//! Readers load one [`Current`] and use it for one handshake; writers replace the whole. A change never touches
//! connections that stand; whoever pools them compares [`Current::generation`].

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use tulle_runtime::names::alpn;

use crate::bundle::TrustBundle;
use crate::error::Error;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Svid;
use crate::tls::{self, ClientAuth};
use crate::verify::{Expected, Usage, verify_chain};

/// One state of an identity. Immutable.
#[derive(Debug)]
pub struct Current {
    svid: Svid,
    bundle: Arc<TrustBundle>,
    domains: [TrustDomain; 1],
    generation: u64,
    mesh_server: Arc<ServerConfig>,
    foreign_server: Arc<ServerConfig>,
}

impl Current {
    fn new(svid: Svid, bundle: Arc<TrustBundle>, generation: u64) -> Self {
        let domains = [svid.id().trust_domain()];
        let server = |protocols: &[&[u8]]| {
            Arc::new(tls::server(
                &svid,
                bundle.clone(),
                &domains,
                ClientAuth::Required,
                protocols,
            ))
        };
        let mesh_server = server(&[alpn::H2, alpn::HTTP1, alpn::TCP]);
        let foreign_server = server(&[b"h2", b"http/1.1"]);
        Self {
            svid,
            bundle,
            domains,
            generation,
            mesh_server,
            foreign_server,
        }
    }

    /// The certificate and key.
    #[must_use]
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    /// The roots that peers are verified against.
    #[must_use]
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// Grows with every new SVID and every new bundle. Connections of different generations are not pooled together.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// For clients inside the mesh: an SVID is required, ALPN is one of `tulle-h2`, `tulle-http1`, `tulle-tcp`.
    #[must_use]
    pub fn mesh_server(&self) -> &Arc<ServerConfig> {
        &self.mesh_server
    }

    /// For foreign mesh clients under STRICT: an SVID is required, ALPN is `h2` or `http/1.1`.
    #[must_use]
    pub fn foreign_server(&self) -> &Arc<ServerConfig> {
        &self.foreign_server
    }

    /// For a server of another kind.
    #[must_use]
    pub fn server(&self, auth: ClientAuth, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        Arc::new(tls::server(
            &self.svid,
            self.bundle.clone(),
            &self.domains,
            auth,
            alpn,
        ))
    }

    /// For calling a peer that must be one of `ids`, offering one protocol. Worth keeping for as long as the generation lasts.
    #[must_use]
    pub fn client(&self, ids: &[SpiffeId], alpn: &[u8]) -> Arc<ClientConfig> {
        Arc::new(tls::client_by_id(
            &self.svid,
            self.bundle.clone(),
            ids,
            alpn,
        ))
    }

    /// For calling the control plane, which is verified by its DNS name.
    #[must_use]
    pub fn client_by_name(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        Arc::new(tls::client_by_name(Some(&self.svid), &self.bundle, alpn))
    }

    /// Whether a client whose certificates were verified at that time is still of a root that is trusted. Time does not
    /// count: a connection may outlive the certificate that it began with.
    #[must_use]
    pub fn still_trusts(&self, chain: &[CertificateDer<'_>], verified: UnixTime) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return false;
        };
        let expected = Expected::Domains(&self.domains);
        verify_chain(
            leaf,
            intermediates,
            &self.bundle,
            Usage::Client,
            expected,
            verified,
        )
        .is_ok()
    }

    /// Whether the SVID is valid now and signed by a root of the bundle.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), Error> {
        check(&self.svid, &self.bundle)
    }
}

/// A handle to the live identity. Clones see the same one.
#[derive(Clone, Debug)]
pub struct Identity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Current>,
    /// Serializes writers.
    writer: Mutex<()>,
    generation: watch::Sender<u64>,
}

impl Identity {
    /// An identity that stays as it is until [`Identity::rotate`] or [`Identity::trust`] is called.
    #[must_use]
    pub fn new(svid: Svid, bundle: TrustBundle) -> Self {
        Self(Arc::new(Shared {
            current: ArcSwap::from_pointee(Current::new(svid, Arc::new(bundle), 0)),
            writer: Mutex::new(()),
            generation: watch::Sender::new(0),
        }))
    }

    /// The state now, to be kept.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.0.current.load_full()
    }

    /// The state now, for a moment and without touching a reference count.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Current>> {
        self.0.current.load()
    }

    /// Our own id, which never changes.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        self.load().svid.id().clone()
    }

    /// Fires with the generation whenever SVID or bundle change.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Puts a new SVID in place; new handshakes use it.
    ///
    /// # Errors
    /// If it is another's, not valid now, or not signed by a root of the bundle. The old one stays then.
    pub fn rotate(&self, svid: Svid) -> Result<(), Error> {
        self.replace(Some(svid), None)
    }

    /// Puts a new bundle in place; new handshakes verify against it. Nothing happens if it is the same.
    pub fn trust(&self, bundle: TrustBundle) {
        self.replace(None, Some(bundle))
            .expect("a bundle alone is never refused");
    }

    /// Puts a new SVID and a new bundle in place at once.
    ///
    /// # Errors
    /// As [`Identity::rotate`], against the new bundle.
    pub fn replace_all(&self, svid: Svid, bundle: TrustBundle) -> Result<(), Error> {
        self.replace(Some(svid), Some(bundle))
    }

    fn replace(&self, svid: Option<Svid>, bundle: Option<TrustBundle>) -> Result<(), Error> {
        let _writer = self.0.writer.lock();
        let old = self.0.current.load_full();
        let bundle = bundle
            .filter(|new| *new != *old.bundle)
            .map_or_else(|| old.bundle.clone(), Arc::new);
        match &svid {
            Some(svid) if svid.id() != old.svid.id() => {
                return Err(Error::OtherIdentity {
                    want: old.svid.id().clone(),
                    got: svid.id().clone(),
                });
            }
            Some(svid) => check(svid, &bundle)?,
            None if Arc::ptr_eq(&bundle, &old.bundle) => return Ok(()),
            None => {}
        }
        let generation = old.generation + 1;
        let svid = svid.unwrap_or_else(|| old.svid.clone());
        self.0
            .current
            .store(Arc::new(Current::new(svid, bundle, generation)));
        self.0.generation.send_replace(generation);
        Ok(())
    }
}

/// Whether an SVID would be believed by peers that trust `bundle`, as a client and as a server.
///
/// # Errors
/// What is wrong with it.
pub fn check(svid: &Svid, bundle: &TrustBundle) -> Result<(), Error> {
    let (leaf, intermediates) = svid.chain().split_first().expect("an SVID has a leaf");
    let ids = std::slice::from_ref(svid.id());
    for usage in [Usage::Client, Usage::Server] {
        verify_chain(
            leaf,
            intermediates,
            bundle,
            usage,
            Expected::Ids(ids),
            UnixTime::now(),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
