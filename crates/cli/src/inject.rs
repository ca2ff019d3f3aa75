//! `tulle inject`: manifests in, manifests with sidecars out; decisions and warnings go to standard error.
//!
//! A namespace whose manifest is among the files is what its labels say; any other counts as labelled, because asking
//! by hand is asking for the sidecar.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, ValueEnum};
use serde_json::Value;
use tulle_identity::TrustDomain;
use tulle_injector::{
    Decision, InjectReason, InjectorConfig, Namespace, Revision, SidecarArgs, SkipReason,
    inject_document,
};
use tulle_runtime::names::{DEFAULT_CLUSTER_DOMAIN, DEFAULT_TRUST_DOMAIN, labels};

use crate::error::CliError;
use crate::{input, output};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tulle inject -f deployment.yaml | kubectl apply -f -
  kubectl get deployment web -o yaml | tulle inject -f -
  tulle inject -f manifests/ --output patch     only the RFC 6902 patches
  tulle inject -f deployment.yaml --revision next --proxy-cpu-limit 1

What sidecars are like is said by the options of `tulle injector`, which an installation makes of its values: those of its \
Deployment have the same effect here.

Of kinds that are not known here and have a pod template, such as a Rollout, nothing is changed: their pods are injected when they \
are made, by the webhook of a cluster.

The paths by which the sidecar calls the pod's hooks (`postStart`, `preStop`) come out the same each time, so that files can be \
compared: whoever has the file, or can guess all that is in it, knows them, and may call them from another pod. The webhook's \
cannot be known by who may not read the pod.")]
pub(crate) struct InjectArgs {
    /// File or directory of manifests; `-` for standard input; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// What to print
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Format,
    /// Namespace of documents that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Revision to inject for: documents of namespaces and pods that name another one are left as they are
    #[arg(long, value_name = "NAME", default_value_t = Revision::default())]
    revision: Revision,
    /// Control plane, as host:port; that of the revision if not said
    #[arg(long, value_name = "HOST:PORT")]
    control_address: Option<String>,
    /// Trust domain of the mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: TrustDomain,
    /// DNS domain of the cluster
    #[arg(long, value_name = "NAME", default_value = DEFAULT_CLUSTER_DOMAIN)]
    cluster_domain: String,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// The injector as it is without an option.
#[derive(Debug, Parser)]
struct Injector {
    #[command(flatten)]
    args: tulle_injector::Args,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The documents as YAML
    Yaml,
    /// The documents as JSON, one a line
    Json,
    /// The patch of each document as JSON, one a line
    Patch,
}

/// One document and where it came from.
struct Document {
    path: PathBuf,
    value: Value,
}

pub(crate) fn run(args: &InjectArgs) -> Result<ExitCode, CliError> {
    let config = args.config()?;
    let mut documents = Vec::new();
    for file in &args.files {
        let before = documents.len();
        for path in expand(file)? {
            read(&path, &mut documents)?;
        }
        if documents.len() == before {
            let what = if file.is_dir() {
                "has no manifests: no document in a file named *.yaml, *.yml or *.json"
            } else {
                "has no documents"
            };
            output::warning(&format!("{} {what}", file.display()));
        }
    }
    let namespaces = namespaces(&documents);
    let mut text = String::new();
    for document in documents {
        text.push_str(&inject(document, args, &namespaces, &config)?);
    }
    output::bytes(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

impl InjectArgs {
    /// What an injector with these options injects.
    fn config(&self) -> Result<InjectorConfig, CliError> {
        let default = Injector::try_parse_from(["injector"]);
        let default = default.map_err(|error| CliError::Usage(error.to_string()))?;
        let injector = tulle_injector::Args {
            revision: self.revision.clone(),
            control_address: self.control_address.clone(),
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.clone(),
            sidecar: self.sidecar.clone(),
            ..default.args
        };
        Ok(injector.config())
    }

    /// A namespace of which nothing is known but that somebody injects by hand what is in it.
    fn asked(&self, name: String) -> Namespace {
        if self.revision.is_default() {
            return Namespace::enabled(name);
        }
        let revision = (labels::REVISION.to_owned(), self.revision.to_string());
        Namespace {
            name,
            labels: BTreeMap::from([revision]),
        }
    }
}

/// The files that an argument stands for, in order of their names.
fn expand(file: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !file.is_dir() {
        return Ok(vec![file.to_owned()]);
    }
    let failed = |source| CliError::Read {
        path: file.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(file).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let known = path
            .extension()
            .is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if known && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path, documents: &mut Vec<Document>) -> Result<(), CliError> {
    let text = input::text(path)?;
    let values = parse(&text).map_err(|source| CliError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    for value in values {
        flatten(path, value, documents)?;
    }
    Ok(())
}

/// The documents of a text. As for kubectl, `0644` is octal.
fn parse(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(text, options)
}

/// A `List` counts as its items.
fn flatten(path: &Path, mut value: Value, documents: &mut Vec<Document>) -> Result<(), CliError> {
    let is_list = value["kind"]
        .as_str()
        .is_some_and(|kind| kind.ends_with("List"));
    match value.get_mut("items").filter(|_| is_list).map(Value::take) {
        Some(Value::Array(items)) => {
            for item in items {
                flatten(path, item, documents)?;
            }
        }
        Some(items) if !items.is_null() => {
            return Err(CliError::Items {
                path: path.to_owned(),
                kind: value["kind"].as_str().unwrap_or_default().to_owned(),
                items: items.to_string(),
            });
        }
        _ if value.is_null() => {}
        _ => documents.push(Document {
            path: path.to_owned(),
            value,
        }),
    }
    Ok(())
}

/// What the files say about namespaces.
fn namespaces(documents: &[Document]) -> BTreeMap<String, Namespace> {
    let mut namespaces = BTreeMap::new();
    for document in documents.iter().map(|document| &document.value) {
        let Some(name) = document["metadata"]["name"]
            .as_str()
            .filter(|_| document["kind"] == "Namespace")
        else {
            continue;
        };
        let mut namespace = Namespace {
            name: name.to_owned(),
            ..Namespace::default()
        };
        for (key, value) in document["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let value = value.as_str().unwrap_or_default().to_owned();
            namespace.labels.insert(key.clone(), value);
        }
        namespaces.insert(name.to_owned(), namespace);
    }
    namespaces
}

fn inject(
    document: Document,
    args: &InjectArgs,
    namespaces: &BTreeMap<String, Namespace>,
    config: &InjectorConfig,
) -> Result<String, CliError> {
    let Document { path, value } = document;
    let name = value["metadata"]["namespace"]
        .as_str()
        .unwrap_or(&args.namespace)
        .to_owned();
    let known = namespaces.get(&name).cloned();
    let by_hand = known.is_none();
    let namespace = known.unwrap_or_else(|| args.asked(name));
    let title = format!(
        "{} {}/{}",
        value["kind"].as_str().unwrap_or("document"),
        namespace.name,
        value["metadata"]["name"].as_str().unwrap_or("(unnamed)"),
    );
    let foreign = has_foreign_template(&value);
    let outcome =
        inject_document(value, &namespace, config).map_err(|source| CliError::Inject {
            path,
            document: title.clone(),
            source: Box::new(source),
        })?;
    if let Some(what) = told(&outcome.decision, foreign, by_hand) {
        output::note(&format!("{title}: {what}"));
    }
    for warning in &outcome.warnings {
        output::warning(&format!("{title}: {warning}"));
    }
    render(args.output, &outcome)
}

/// What there is to say of a document; nothing of one that makes no pods.
fn told(decision: &Decision, foreign: bool, by_hand: bool) -> Option<String> {
    match decision {
        Decision::Skip(SkipReason::NotAWorkload) => foreign.then(|| {
            "left as it is: its kind is not known here; its pods get a sidecar when they are made, by the webhook of a cluster"
                .to_owned()
        }),
        Decision::Inject(InjectReason::NamespaceLabel | InjectReason::NamespaceRevision)
            if by_hand =>
        {
            Some("injected".to_owned())
        }
        decision => Some(decision.to_string()),
    }
}

/// Whether it has a pod template where workloads have theirs, as an Argo Rollout or a Service of Knative.
fn has_foreign_template(document: &Value) -> bool {
    document["spec"]["template"]["spec"]["containers"].is_array()
}

fn render(format: Format, outcome: &tulle_injector::Outcome) -> Result<String, CliError> {
    match format {
        Format::Json => Ok(format!("{}\n", outcome.document)),
        Format::Patch if outcome.patch.0.is_empty() => Ok(String::new()),
        Format::Patch => Ok(format!("{}\n", outcome.patch)),
        Format::Yaml => output::document(&outcome.document),
    }
}

#[cfg(test)]
mod tests;
