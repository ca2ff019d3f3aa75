//! Why a command ended early, and what to do next.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use crate::cluster::Permission;
use crate::output;

/// A command that could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the output")]
    Write(#[source] io::Error),
    #[error("cannot write manual pages into {}", path.display())]
    Pages {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not valid YAML or JSON", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    #[error("{}: items of {kind} is {items}, not a list of documents", path.display())]
    Items {
        path: PathBuf,
        kind: String,
        items: String,
    },
    #[error("{document} in {} cannot be injected", path.display())]
    Inject {
        path: PathBuf,
        document: String,
        #[source]
        source: Box<tulle_injector::InjectError>,
    },
    #[error("cannot print the document")]
    Render(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot be installed with these values")]
    Values(#[source] Box<dyn std::error::Error + Send + Sync>),
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
    #[error("{object} is still there after {seconds} s; a finalizer may hold it")]
    StillThere { object: String, seconds: u64 },
    #[error("no such pod: {namespace}/{pod}")]
    NoSuchPod { namespace: String, pod: String },
    #[error(
        "{count} pods still have a sidecar: {some}; nobody would renew their certificates, and when these end nobody reaches them"
    )]
    SidecarsStay { count: usize, some: String },
    #[error("Helm has installed this, as release {release} in namespace {namespace}")]
    OfHelm { release: String, namespace: String },
    #[error("pod {0} has no sidecar")]
    NoSidecar(String),
    #[error("no control plane of Tulle runs in this cluster")]
    NoControlPlane,
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on port {port} for {protocol}")]
    Bind {
        port: u16,
        protocol: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the control plane ended")]
    Control(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the injector ended")]
    Injector(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the agent ended")]
    Agent(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the demo could not run")]
    Demo(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Sandbox(#[from] tulle_sandbox::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{url} is not a URL to call: {problem}")]
    Url { url: String, problem: String },
    #[error("no answer from {url}: {reason}")]
    NoAnswer { url: String, reason: String },
}

impl CliError {
    /// Why the demo ended early: what it could not print is its own kind of end.
    pub(crate) fn of_demo(error: anyhow::Error) -> Self {
        match error.downcast() {
            Ok(own) => own,
            Err(error) => Self::Demo(error.into()),
        }
    }

    /// Why, without what was to be done where that is said already.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Unanswered { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Pod { reason, .. } => reason.clone(),
            Self::Forbidden { permission, .. } => format!("you have no right to {permission}"),
            other => output::chain(other),
        }
    }

    /// What the user can do about it.
    pub(crate) fn next_step(&self) -> Cow<'static, str> {
        match self {
            Self::Forbidden { permission, .. } => Cow::Owned(format!(
                "have somebody do it who has it, or give it to you: `{}` says whether you have",
                permission.command()
            )),
            Self::Pod { namespace, pod, .. } => Cow::Owned(format!(
                "see how it is: kubectl -n {namespace} describe pod {pod}; kubectl -n {namespace} logs {pod} --all-containers"
            )),
            Self::NoSuchPod { namespace, .. } => Cow::Owned(format!(
                "see which there are: kubectl get pods -n {namespace}"
            )),
            other => Cow::Borrowed(other.known_step()),
        }
    }

    /// As [`Self::next_step`], where it is always the same.
    fn known_step(&self) -> &'static str {
        match self {
            Self::Read { .. } => "check the path and its permissions; `-` reads standard input",
            Self::Pages { .. } => "name a directory that you may write",
            Self::Write(_) => "check that the output is still open and has room",
            Self::Parse { .. } => {
                "correct the line that the message names; `---` separates documents"
            }
            Self::Items { .. } => "write the documents as a YAML sequence: `items: [...]`",
            Self::Inject { .. } => {
                "correct the document, or leave it out with the label tulle.dev/inject=disabled"
            }
            Self::Render(_) => "try `--output json`",
            Self::Values(_) => {
                "correct the value; deploy/charts/tulle/values.yaml explains each of them"
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
            Self::StillThere { .. } => {
                "see who holds it in its metadata.finalizers (kubectl get KIND NAME -o yaml), and try again once that is done"
            }
            // Said with what it is about.
            Self::Forbidden { .. } | Self::Pod { .. } | Self::NoSuchPod { .. } => {
                "see `--help` of the command"
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
            Self::Runtime(_) => "check the limits of the process (`ulimit -a`)",
            Self::Bind { .. } => "choose another port, or see who has it with `ss -ltnp`",
            Self::Control(_) => "`tulle control --help` explains the settings",
            Self::Injector(_) => "`tulle injector --help` explains the settings",
            Self::Agent(_) => "`tulle agent --help` explains the settings",
            Self::Demo(_) => "`tulle demo --help` says what it needs",
            // Only a client misses things: there is no sandbox that it could ask.
            Self::Sandbox(tulle_sandbox::Error::Missing { .. }) => {
                "start one in another terminal with `tulle sandbox up -f DIR` or `tulle demo --keep`"
            }
            Self::Sandbox(tulle_sandbox::Error::Answered(_)) => {
                "`tulle sandbox status` lists the pods"
            }
            Self::Sandbox(
                tulle_sandbox::Error::Several { .. } | tulle_sandbox::Error::NotThatOne { .. },
            ) => "add `--sandbox ID` to the command, with the id of one of them",
            Self::Sandbox(_) => "`tulle sandbox --help` says what it needs",
            Self::Usage(_) => "see `--help` of the command",
            Self::Url { .. } => {
                "write http://HOST[:PORT]/PATH, grpc://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT"
            }
            Self::NoAnswer { .. } => {
                "check that something listens there: `tulle app call tcp://HOST:PORT`"
            }
        }
    }
}
