//! `tulle install`: the objects of an installation as YAML, for kubectl to apply.

mod manifests;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;
use tulle_runtime::names::DEFAULT_REVISION;

use crate::error::CliError;
use crate::{input, output};
use values::{Layered, Profile, Values};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tulle install | kubectl apply --server-side -f -
  tulle install --profile ha --set control.log=debug | kubectl apply --server-side -f -
  tulle install --revision next | kubectl apply --server-side -f -    a second control plane beside the first
  tulle install -f values.yaml --output json

Then have the pods of a namespace injected, and restart those that run:
  kubectl label namespace shop tulle.dev/inject=enabled
  kubectl rollout restart deployment -n shop

The values are those of the Helm chart (deploy/charts/tulle/values.yaml), which renders the same objects.

It talks to no cluster: `tulle check --pre` says whether one can have the mesh, and which namespaces cannot be in it.")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    choice: Choice,
    /// What to print
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Format,
}

/// What is to be installed.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// Set of values to begin with
    #[arg(long, value_enum, default_value = "default")]
    profile: Profile,
    /// File of values; `-` for standard input; may be repeated, later ones win
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One value, such as `control.replicas=3`, as YAML; may be repeated, and wins over files. A dot that belongs to a name has a
    /// backslash before it: `control.nodeSelector.kubernetes\.io/os=linux`
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Revision of the control plane; the same as `--set revision=NAME`
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One document an object
    Yaml,
    /// One object a line
    Json,
}

pub(crate) fn run(args: &InstallArgs) -> Result<ExitCode, CliError> {
    let values = args.choice.values()?;
    let mut text = String::new();
    for object in all(&values) {
        match args.output {
            Format::Json => text.push_str(&format!("{object}\n")),
            Format::Yaml => text.push_str(&output::document(&object)?),
        }
    }
    output::bytes(text.as_bytes())?;
    output::note(
        "No cluster was looked at: `tulle check --pre` says whether one can have the mesh, and names the namespaces that cannot be in it, as \
         those that enforce the pod security level baseline or restricted.",
    );
    Ok(ExitCode::SUCCESS)
}

/// Every object, in the order in which they are to be applied. What all revisions share belongs to the default one.
pub(crate) fn all(values: &Values) -> Vec<Value> {
    let mut objects = Vec::new();
    if values.revision == DEFAULT_REVISION {
        objects.push(manifests::namespace());
    }
    objects.extend(manifests::crds());
    objects.extend(manifests::objects(values));
    objects
}

/// Group and kind of everything that there is in any installation.
#[cfg(test)]
pub(crate) fn kinds() -> std::collections::BTreeSet<(String, String)> {
    let values = Layered::new(Profile::Ha).values().expect("good values");
    let kind = |object: &Value| {
        let text = |field: &str| object[field].as_str().expect("it is text").to_owned();
        let version = text("apiVersion");
        let group = version.split_once('/').map_or("", |(group, _)| group);
        (group.to_owned(), text("kind"))
    };
    all(&values).iter().map(kind).collect()
}

impl Choice {
    /// The values that were chosen.
    pub(crate) fn values(&self) -> Result<Values, CliError> {
        let bad = |error| CliError::Values(Box::new(error));
        let mut layered = Layered::new(self.profile);
        for file in &self.files {
            let origin = file.display().to_string();
            layered = layered.file(&origin, &input::text(file)?).map_err(bad)?;
        }
        let revision = self.revision.iter().map(|name| format!("revision={name}"));
        for assignment in self.set.iter().cloned().chain(revision) {
            layered = layered.set(&assignment).map_err(bad)?;
        }
        layered.values().map_err(bad)
    }
}
