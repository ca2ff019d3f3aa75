//! `tulle upgrade`: what would change in the cluster, object by object, and then the change.
//!
//! The API server says what each object would be (server-side apply as a dry run), so that the difference is neither of
//! defaults nor of what others own.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::owned;
use super::{Access, answer};
use crate::error::CliError;
use crate::install::{self, Choice};
use crate::output;

#[derive(Debug, Args)]
#[command(after_help = "\
Give the profile and the values that the installation was made with; what differs is shown before anything is changed. It \
stands for `tulle install ... | kubectl apply --server-side --force-conflicts -f -`, with the difference first.

Exits with 1 if something would change and --yes is not given.

Examples:
  tulle upgrade --profile ha              what would change
  tulle upgrade --profile ha --yes        change it")]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    choice: Choice,
    /// Change it; without it only show
    #[arg(short, long)]
    yes: bool,
}

/// Who owns the fields: whoever installs with kubectl, so that one goes on where the other was.
const MANAGER: &str = "kubectl";
/// Lines around a difference.
const CONTEXT: usize = 3;

const ADDED: Style = AnsiColor::Green.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
const HEAD: Style = Style::new().bold();

/// The kinds that what belongs to one revision may be of, by group.
pub(super) const KINDS: [(&str, &str); 11] = [
    ("", "Service"),
    ("", "ServiceAccount"),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
    ),
    ("apps", "Deployment"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
];

pub(crate) async fn run(args: UpgradeArgs) -> Result<ExitCode, CliError> {
    let client = args.access.client().await?;
    let values = args.choice.values()?;
    let (mut changed, mut wanted) = (Vec::new(), BTreeSet::new());
    for object in install::all(&values) {
        let target = Target::new(&client, &object)?;
        wanted.insert(target.title.clone());
        if let Some(difference) = target.difference(&object).await? {
            output::styled(&difference)?;
            changed.push((target, object));
        }
    }
    let found = owned::find(&client, Some(&KINDS)).await?;
    found.warn();
    let mut left = found.objects;
    left.retain(|object| object.is_of(&values.revision) && !wanted.contains(&object.title()));
    for object in &left {
        output::styled(&format!(
            "{HEAD}{}{HEAD:#} {REMOVED}(deleted){REMOVED:#}",
            object.title()
        ))?;
    }
    let count = changed.len() + left.len();
    if count == 0 {
        output::note("Nothing would change.");
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes {
        output::note(&format!(
            "{count} objects would change: add --yes to change them."
        ));
        return Ok(ExitCode::FAILURE);
    }
    for (target, object) in &changed {
        target.apply(object, false).await?;
        output::note(&format!("{} applied", target.title));
    }
    for object in &left {
        object.delete().await?;
        output::note(&format!("{} deleted", object.title()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where an object goes.
struct Target {
    title: String,
    name: String,
    api: Api<DynamicObject>,
}

impl Target {
    fn new(client: &Client, object: &Value) -> Result<Self, CliError> {
        let types: TypeMeta = serde_json::from_value(object.clone())
            .map_err(|error| CliError::Render(error.into()))?;
        let kind =
            GroupVersionKind::try_from(types).map_err(|error| CliError::Render(error.into()))?;
        let resource = ApiResource::from_gvk(&kind);
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let (title, api) = match metadata["namespace"].as_str() {
            Some(namespace) => (
                format!("{} {namespace}/{name}", kind.kind),
                Api::namespaced_with(client.clone(), namespace, &resource),
            ),
            None => (
                format!("{} {name}", kind.kind),
                Api::all_with(client.clone(), &resource),
            ),
        };
        Ok(Self { title, name, api })
    }

    /// What applying it would change; `None` if nothing.
    async fn difference(&self, object: &Value) -> Result<Option<String>, CliError> {
        let what = format!("read {}", self.title);
        let before = answer(&what, self.api.get_opt(&self.name)).await?;
        let after = match &before {
            // Where its namespace or kind is to be made first, there is nothing to try it in.
            None => object.clone(),
            Some(_) => plain(self.apply(object, true).await?)?,
        };
        let before = before.map(plain).transpose()?;
        let (before, after) = (yaml(before.as_ref())?, yaml(Some(&after))?);
        Ok((before != after).then(|| difference(&self.title, &before, &after)))
    }

    async fn apply(&self, object: &Value, dry_run: bool) -> Result<DynamicObject, CliError> {
        let mut how = PatchParams::apply(MANAGER).force();
        how.dry_run = dry_run;
        let what = format!("apply {}", self.title);
        answer(
            &what,
            self.api.patch(&self.name, &how, &Patch::Apply(object)),
        )
        .await
    }
}

/// Without what the API server keeps for itself.
fn plain(mut object: DynamicObject) -> Result<Value, CliError> {
    object.managed_fields_mut().clear();
    let mut value =
        serde_json::to_value(&object).map_err(|error| CliError::Render(error.into()))?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for field in [
            "creationTimestamp",
            "generation",
            "managedFields",
            "resourceVersion",
            "uid",
        ] {
            metadata.remove(field);
        }
    }
    Ok(value)
}

fn yaml(object: Option<&Value>) -> Result<String, CliError> {
    let text = object.map(serde_saphyr::to_string).transpose();
    Ok(text
        .map_err(|error| CliError::Render(Box::new(error)))?
        .unwrap_or_default())
}

/// The lines that differ, with those around them.
fn difference(title: &str, before: &str, after: &str) -> String {
    let diff = TextDiff::from_lines(before, after);
    let mut text = format!("{HEAD}{title}{HEAD:#}");
    if before.is_empty() {
        text += " (new)";
    }
    for group in diff.grouped_ops(CONTEXT) {
        text += "\n  ...";
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, style) = match change.tag() {
                ChangeTag::Delete => ('-', REMOVED),
                ChangeTag::Insert => ('+', ADDED),
                ChangeTag::Equal => (' ', Style::new()),
            };
            let line = change.value().trim_end();
            text += &format!("\n{style}{sign} {line}{style:#}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown_with_its_neighbours() {
        let before: String = (0..20).map(|line| format!("line {line}\n")).collect();
        let after = before.replace("line 10\n", "line ten\n");
        let text =
            anstream::adapter::strip_str(&difference("Service a/b", &before, &after)).to_string();
        let expected = "Service a/b\n  ...\n  line 7\n  line 8\n  line 9\n- line 10\n+ line ten\n  line 11\n  line 12\n  line 13";
        assert_eq!(text, expected);
        let text =
            anstream::adapter::strip_str(&difference("Service a/b", "", "x: 1\n")).to_string();
        assert_eq!(text, "Service a/b (new)\n  ...\n+ x: 1");
    }
}
