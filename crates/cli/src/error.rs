//! Why a command ended early, and what to do next.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use crate::cluster::ClusterError;

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
    #[error(transparent)]
    Cluster(#[from] ClusterError),
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
    /// Whether it says how the mesh is, and not that nobody could be asked.
    pub(crate) fn is_of_the_mesh(&self) -> bool {
        matches!(
            self,
            Self::Cluster(ClusterError::NoControlPlane | ClusterError::NoSuchNamespace(_))
        )
    }

    /// Why the demo ended early: what it could not print is its own kind of end.
    pub(crate) fn of_demo(error: anyhow::Error) -> Self {
        match error.downcast() {
            Ok(own) => own,
            Err(error) => Self::Demo(error.into()),
        }
    }

    /// What the user can do about it.
    pub(crate) fn next_step(&self) -> Cow<'static, str> {
        let always = match self {
            Self::Cluster(error) => return error.next_step(),
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
        };
        always.into()
    }
}
