//! The CA's memory without a file or a clock, for fuzz targets.

use std::time::{Duration, SystemTime};

use tulle_identity::{IssueRequest, Issuer, SpiffeId, Svid, TrustDomain};
use tulle_runtime::names::DEFAULT_TRUST_DOMAIN;

use super::authority::issuer;
use super::roots::{RootPem, Roots, Stage};

/// How long leaves live.
const LEAF: Duration = Duration::from_secs(24 * 3600);
/// How long a bundle takes to reach everybody.
const PROPAGATION: Duration = Duration::from_secs(120);

/// What was read of a state file, and who signs by it.
#[derive(Debug)]
pub struct CaState {
    roots: Roots,
    issuer: Issuer,
}

impl CaState {
    /// What the file says.
    ///
    /// # Errors
    /// If the CA does not begin with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let roots = Roots::read(text)?;
        let domain = TrustDomain::new(DEFAULT_TRUST_DOMAIN).map_err(|error| error.to_string())?;
        let issuer = issuer(&roots, LEAF, &domain).map_err(|error| error.to_string())?;
        Ok(Self { roots, issuer })
    }

    /// The file of a new mesh, whose root this is.
    #[must_use]
    pub fn new_file(certificate: String, secret: String) -> String {
        let roots = Roots::new(RootPem {
            certificate,
            secret,
            provided: false,
        });
        serde_json::to_string(&roots).expect("plain data is always JSON")
    }

    /// The trust bundle that is published.
    #[must_use]
    pub fn bundle(&self) -> String {
        self.roots.bundle()
    }

    /// Whether no rotation is under way.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        self.roots.stage() == Stage::Steady
    }

    /// A leaf.
    ///
    /// # Errors
    /// As for a workload.
    pub fn leaf(&self, id: &SpiffeId) -> Result<Svid, tulle_identity::Error> {
        self.issuer.issue_svid(&IssueRequest {
            ttl: Some(LEAF),
            ..IssueRequest::new(id)
        })
    }

    /// What is saved of it is read again; the bundle has left at this time, and then the rotation's next step is taken
    /// if it is due. When that will be, if it is not.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn step(self, now: SystemTime) -> Result<(Self, Option<SystemTime>), String> {
        let mut roots = self.roots;
        roots.announced(now);
        let moved = roots.advance(now, PROPAGATION, LEAF);
        let due = roots.due(PROPAGATION).filter(|_| !moved);
        let text = serde_json::to_string(&roots).map_err(|error| error.to_string())?;
        Self::read(&text).map(|state| (state, due))
    }
}
