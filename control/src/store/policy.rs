//! PeerAuthentication: what a workload's inbound side accepts.

use std::collections::BTreeMap;

use super::route::Created;
use super::{Kind, Labels, ObjectKey};

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Whether it came from `security.istio.io`.
    pub istio: bool,
    /// When it was made: of two that apply equally, the older one counts.
    pub created: Created,
    /// What it applies to.
    pub target: PolicyTarget,
    /// Mode of every port; `None`: whatever the wider scope says.
    pub mode: Option<MtlsMode>,
    /// Modes of single container ports.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl PeerAuthentication {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.istio {
            Kind::IstioPeerAuthentication
        } else {
            Kind::PeerAuthentication
        }
    }
}

/// What a policy applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyTarget {
    /// Every pod of its namespace; of the mesh, if it lies in the control plane's namespace.
    Namespace,
    /// Pods of its namespace with these labels; of every namespace, if it lies in the control plane's.
    Pods(Labels),
    /// Pods that these Services of its namespace select.
    Services(Vec<ObjectKey>),
}

/// What inbound accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Only mTLS.
    Strict,
    /// mTLS and plaintext; peers use mTLS.
    #[default]
    Permissive,
    /// mTLS and plaintext; peers use plaintext.
    Disable,
}
