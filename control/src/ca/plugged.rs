//! A root that somebody else provides, such as cert-manager: a Secret of type `kubernetes.io/tls` with `tls.crt`, `tls.key` and
//! `ca.crt`.
//!
//! See <https://cert-manager.io/docs/reference/api-docs/#cert-manager.io/v1.CertificateSpec>. It may be a root, or a certificate
//! below one, with what is between.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tulle_identity::{Root, TrustDomain};
use tulle_runtime::names;

use super::CaError;
use super::roots::RootPem;
use crate::platform::{call, watch_one};

/// A Secret with a root.
pub(crate) struct Plugged {
    client: Client,
    secrets: Api<Secret>,
    name: String,
    domain: TrustDomain,
    hint: AtomicBool,
}

impl Plugged {
    /// The Secret of this name in the control plane's namespace, for a mesh.
    pub(crate) fn new(client: &Client, name: &str, domain: &TrustDomain) -> Self {
        Self {
            client: client.clone(),
            secrets: Api::namespaced(client.clone(), names::CONTROL_NAMESPACE),
            name: name.to_owned(),
            domain: domain.clone(),
            hint: AtomicBool::new(true),
        }
    }

    /// What people call it.
    pub(crate) fn place(&self) -> String {
        format!("Secret {}/{}", names::CONTROL_NAMESPACE, self.name)
    }

    /// The root that is in it now, if it is good at that time.
    pub(crate) async fn root(&self, now: SystemTime) -> Result<RootPem, CaError> {
        self.hint.store(false, Ordering::Relaxed);
        let found = call(self.secrets.get_opt(&self.name)).await;
        let found = found.map_err(|source| {
            self.hint.store(true, Ordering::Relaxed);
            CaError::Api {
                place: self.place(),
                source,
            }
        })?;
        let Some(secret) = found else {
            return Err(self.bad("it does not exist: make it, or leave out --ca-issuer-secret"));
        };
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| {
            let value = data.get(key).filter(|value| !value.0.is_empty());
            let value = value.ok_or_else(|| self.bad(format!("it has no key {key}")))?;
            str::from_utf8(&value.0).map_err(|_| self.bad(format!("its key {key} is not PEM")))
        };
        let (chain, key, root) = (text("tls.crt")?, text("tls.key")?, text("ca.crt")?);
        let root = Root::from_parts(chain, key, root, &self.domain)
            .map_err(|error| self.bad(error.full()))?;
        if *root.trust_domain() != self.domain {
            let found = root.trust_domain();
            return Err(self.bad(format!(
                "it is of trust domain {found}, not {}",
                self.domain
            )));
        }
        if root.not_after() <= now {
            return Err(self.bad("it has expired: put one there that is valid"));
        }
        if root.not_before() > now {
            // Nobody tells when it is.
            self.hint.store(true, Ordering::Relaxed);
            return Err(self.bad("it is not valid yet: wait, or see that clocks agree"));
        }
        Ok(RootPem::provided(&root))
    }

    /// Whether there may be another root in it.
    pub(crate) fn is_due(&self) -> bool {
        self.hint.load(Ordering::Relaxed)
    }

    /// Calls `wake` whenever there may be another root in it, for ever.
    pub(crate) async fn follow(&self, wake: impl Fn()) {
        watch_one::<Secret>(&self.client, &self.name, || {
            self.hint.store(true, Ordering::Relaxed);
            wake();
        })
        .await;
    }

    /// The error of one that cannot be used.
    pub(crate) fn bad(&self, reason: impl Into<String>) -> CaError {
        CaError::Plugged {
            place: self.place(),
            reason: reason.into(),
        }
    }
}

impl fmt::Debug for Plugged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugged")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
