//! Why something could not be learnt of a cluster, or done to it.

use std::borrow::Cow;

use super::refusal::Permission;
use super::uninstall::Hindrance;

/// What a cluster has not answered, or not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("no cluster to talk to: {0}")]
    Kubeconfig(String),
    #[error("cannot {what}: {reason}")]
    Unanswered { what: String, reason: String },
    #[error("cannot {what}: {reason}")]
    Refused { what: String, reason: String },
    #[error("cannot {what}: you have no right to {permission}")]
    Forbidden {
        what: String,
        permission: Permission,
    },
    #[error("cannot ask pod {namespace}/{pod} on port {port}: {reason}")]
    Pod {
        namespace: String,
        pod: String,
        port: u16,
        reason: String,
    },
    #[error(
        "{object} is still there after {seconds} s, held by {}",
        holders(finalizers)
    )]
    StillThere {
        object: String,
        seconds: u64,
        /// Of others than Kubernetes itself.
        finalizers: Vec<String>,
    },
    #[error("{0} names a namespace, and so does --namespace")]
    NamedTwice(String),
    #[error("no such namespace: {0}")]
    NoSuchNamespace(String),
    #[error("pod {pod} cannot be asked, because node {node} is not ready ({why})")]
    NodeAway {
        pod: String,
        node: String,
        why: String,
    },
    #[error("no such pod: {namespace}/{pod}")]
    NoSuchPod { namespace: String, pod: String },
    #[error(
        "{count} pods still have a sidecar: {some}; nobody would renew their certificates, and when these end nobody reaches them"
    )]
    SidecarsStay { count: usize, some: String },
    #[error("Helm has installed this, as release {release} in namespace {namespace}")]
    OfHelm { release: String, namespace: String },
    #[error(transparent)]
    Uninstall(#[from] Hindrance),
    #[error("pod {0} has no sidecar")]
    NoSidecar(String),
    #[error("no control plane of Tulle runs in this cluster")]
    NoControlPlane,
}

fn holders(finalizers: &[String]) -> String {
    match finalizers {
        [] => "what belongs to it".to_owned(),
        some => format!("its finalizers: {}", some.join(", ")),
    }
}

impl ClusterError {
    /// Why, without what was to be done where that is said already.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Unanswered { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Pod { reason, .. } => reason.clone(),
            Self::Forbidden { permission, .. } => format!("you have no right to {permission}"),
            other => other.to_string(),
        }
    }

    /// What the user can do about it.
    pub(crate) fn next_step(&self) -> Cow<'static, str> {
        let always = match self {
            Self::Uninstall(hindrance) => return hindrance.next_step().into(),
            Self::Forbidden { permission, .. } => {
                let command = permission.command();
                return format!("have somebody do it who has it, or give it to you: `{command}` says whether you have").into();
            }
            Self::Pod { namespace, pod, .. } => {
                return format!(
                    "see how it is: kubectl -n {namespace} describe pod {pod}; kubectl -n {namespace} logs {pod} --all-containers"
                )
                .into();
            }
            Self::NamedTwice(_) => "write NAMESPACE/POD, or POD with --namespace",
            Self::NoSuchNamespace(_) => "see which there are: kubectl get namespaces",
            Self::NodeAway { node, .. } => {
                return format!(
                    "see why: kubectl describe node {node}; have its kubelet run, or delete the node"
                )
                .into();
            }
            Self::NoSuchPod { namespace, .. } => {
                return format!("see which there are: kubectl get pods -n {namespace}").into();
            }
            Self::Kubeconfig(_) => {
                "see that `kubectl get nodes` works; `--context NAME` chooses another cluster"
            }
            Self::Unanswered { .. } => {
                "see that the API server answers in time: kubectl get --raw '/readyz?verbose'"
            }
            Self::Refused { .. } => {
                "put right what the API server says, which is its own word, and try again"
            }
            Self::StillThere { finalizers, .. } if finalizers.is_empty() => {
                "see which of its pods do not end, and why: kubectl get pods -n tulle-system -o wide; try again once they are gone"
            }
            Self::StillThere { .. } => {
                "see who holds it in its metadata.finalizers (kubectl get KIND NAME -o yaml), and try again once that is done"
            }
            Self::SidecarsStay { .. } => {
                "have their namespaces ask for no mesh (kubectl label namespace NAME tulle.dev/inject- tulle.dev/rev-), or for another revision, restart them (kubectl -n NAME rollout restart deployment,statefulset,daemonset), and try again; --force if they may fail"
            }
            Self::OfHelm { .. } => {
                "change it with `helm upgrade`, as it was installed: Helm would fail with conflicts over what others have changed"
            }
            Self::NoSidecar(_) => {
                "label its namespace (kubectl label namespace NAME tulle.dev/inject=enabled) and restart its workload"
            }
            Self::NoControlPlane => "install it: tulle install | kubectl apply --server-side -f -",
        };
        always.into()
    }
}
