//! What the containers of a pod need, decided before anything runs; what the sandbox does not have is refused by name.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Lifecycle, Pod, PodSpec, VolumeMount};
use tulle_runtime::names::containers::{PROXY_IMAGE, TULLE_IMAGE};

use super::env::{Facts, Variables};
use super::probe::Probes;
use super::security;
use super::volumes::{self, Content, Volume};
use crate::node::Ids;
use crate::stage::{Bind, SECRETS, UserIds};

/// A pod that can run here.
#[derive(Debug, Clone)]
pub(crate) struct PodPlan {
    pub(crate) hostname: String,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) containers: Vec<ContainerPlan>,
    pub(crate) grace: Duration,
}

/// When a container takes its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Before the app, to its end.
    Init,
    /// Before the app, to the end of the pod.
    Sidecar,
    /// When all before it are done or started.
    App,
}

/// Whether a container that ended starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub(crate) fn after(self, success: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !success,
            Self::Never => false,
        }
    }
}

/// What happens before SIGTERM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PreStop {
    Sleep(Duration),
    Exec(Vec<String>),
}

/// A container that can run here.
#[derive(Debug, Clone)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) turn: Turn,
    pub(crate) argv: Vec<String>,
    /// The image is one of ours: run the running executable.
    pub(crate) this_program: bool,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: PathBuf,
    pub(crate) user: Option<UserIds>,
    pub(crate) capabilities: u64,
    pub(crate) binds: Vec<Bind>,
    pub(crate) probes: Probes,
    pub(crate) pre_stop: Option<PreStop>,
    pub(crate) restart: Restart,
}

/// Decides. `directory` is where the pod's volumes are; the error names the field and the remedy.
pub(crate) fn plan(facts: &Facts<'_>, ids: Ids, directory: &Path) -> Result<PodPlan, String> {
    let spec = facts.pod.spec.as_ref().ok_or("there is no spec: add one")?;
    if spec.host_network == Some(true) {
        return Err(
            "hostNetwork: pods of the sandbox have a network of their own: leave it out".to_owned(),
        );
    }
    let restart = match spec.restart_policy.as_deref() {
        None | Some("Always") => Restart::Always,
        Some("OnFailure") => Restart::OnFailure,
        Some("Never") => Restart::Never,
        Some(other) => {
            return Err(format!(
                "restartPolicy is {other}: write Always, OnFailure or Never"
            ));
        }
    };
    let planner = Planner {
        facts,
        ids,
        directory,
        spec,
        volumes: volumes::parse(spec, facts)?,
        restart,
    };
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| planner.container(container, true));
    let app = spec
        .containers
        .iter()
        .map(|container| planner.container(container, false));
    let grace = spec
        .termination_grace_period_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    Ok(PodPlan {
        hostname: spec
            .hostname
            .clone()
            .or(facts.pod.metadata.name.clone())
            .unwrap_or_default(),
        containers: init.chain(app).collect::<Result<_, _>>()?,
        volumes: planner.volumes,
        grace: Duration::from_secs(grace.unwrap_or(30)),
    })
}

struct Planner<'a> {
    facts: &'a Facts<'a>,
    ids: Ids,
    directory: &'a Path,
    spec: &'a PodSpec,
    volumes: Vec<Volume>,
    restart: Restart,
}

impl Planner<'_> {
    fn container(&self, container: &Container, init: bool) -> Result<ContainerPlan, String> {
        let named = |problem: String| format!("container {}: {problem}", container.name);
        let turn = match (init, container.restart_policy.as_deref()) {
            (true, Some("Always")) => Turn::Sidecar,
            (true, _) => Turn::Init,
            (false, _) => Turn::App,
        };
        let environment = self.facts.environment(container).map_err(named)?;
        let (argv, this_program) =
            program(container, &Variables::of(&environment)).map_err(named)?;
        Ok(ContainerPlan {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            turn,
            argv,
            this_program,
            environment,
            directory: container.working_dir.as_deref().unwrap_or("/").into(),
            user: security::user(self.spec, container, self.ids).map_err(named)?,
            capabilities: security::capabilities(container).map_err(named)?,
            binds: self.binds(container).map_err(named)?,
            probes: Probes::parse(container).map_err(named)?,
            pre_stop: pre_stop(container.lifecycle.as_ref()).map_err(named)?,
            restart: match turn {
                Turn::Sidecar => Restart::Always,
                Turn::Init if self.restart == Restart::Never => Restart::Never,
                Turn::Init => Restart::OnFailure,
                Turn::App => self.restart,
            },
        })
    }

    fn binds(&self, container: &Container) -> Result<Vec<Bind>, String> {
        let file = |name: &str, target: &str| Bind {
            source: self.directory.join(name),
            target: target.into(),
            read_only: false,
        };
        let mut binds = vec![
            file("resolv.conf", "/etc/resolv.conf"),
            file("hosts", "/etc/hosts"),
        ];
        for mount in container.volume_mounts.iter().flatten() {
            binds.push(self.bind(mount)?);
        }
        // An outer mount must not cover an inner one.
        binds.sort_by_key(|bind| bind.target.components().count());
        Ok(binds)
    }

    fn bind(&self, mount: &VolumeMount) -> Result<Bind, String> {
        let volume = self.volumes.iter().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| {
            format!(
                "volumeMounts names volume {}, which does not exist",
                mount.name
            )
        })?;
        let (base, files) = match &volume.content {
            Content::Host(path) => (path.clone(), false),
            Content::Empty => (self.directory.join(&volume.name), false),
            Content::Files(_) => (self.directory.join(&volume.name), true),
        };
        let target = normal(&mount.mount_path);
        if !target.is_absolute() || !(target.starts_with(SECRETS) || target.exists()) {
            return Err(format!(
                "mountPath {} does not exist on this machine: create it, or mount below /var/run/secrets",
                mount.mount_path
            ));
        }
        Ok(Bind {
            source: mount
                .sub_path
                .as_ref()
                .map_or(base.clone(), |path| base.join(path)),
            target,
            read_only: files || mount.read_only == Some(true),
        })
    }
}

/// The path without `.` and `..`, and with /var/run spelled /run, of which it is a link.
fn normal(path: &str) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    match normal.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => normal,
    }
}

/// The argument vector, and whether it is for the running executable.
fn program(container: &Container, variables: &Variables) -> Result<(Vec<String>, bool), String> {
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|text| variables.expand(text))
            .collect()
    };
    let (command, arguments) = (expand(&container.command), expand(&container.args));
    let image = container.image.as_deref().unwrap_or_default();
    let ours = match repository(image) {
        PROXY_IMAGE => Some(vec!["tulle".to_owned(), "proxy".to_owned()]),
        TULLE_IMAGE => Some(vec!["tulle".to_owned()]),
        _ => None,
    };
    let this_program = match (&ours, command.first()) {
        (Some(_), None) => true,
        (Some(_), Some(program)) => matches!(program.as_str(), "tulle" | "tulle-proxy"),
        (None, Some(_)) => false,
        (None, None) => {
            return Err(format!(
                "image {image} is not pulled here: give it a command, a program on this machine's PATH"
            ));
        }
    };
    let mut argv = match (ours, command.first().map(String::as_str)) {
        // The thin program is the role of the whole one.
        (Some(_), Some("tulle-proxy")) => {
            let role = ["tulle", "proxy"].map(str::to_owned).into_iter();
            role.chain(command.into_iter().skip(1)).collect()
        }
        (_, Some(_)) => command,
        (ours, None) => ours.unwrap_or_default(),
    };
    argv.extend(arguments);
    Ok((argv, this_program))
}

/// The image without tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or_default();
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}

fn pre_stop(lifecycle: Option<&Lifecycle>) -> Result<Option<PreStop>, String> {
    let Some(lifecycle) = lifecycle else {
        return Ok(None);
    };
    if lifecycle.post_start.is_some() {
        return Err("lifecycle.postStart does not exist here: use an init container".to_owned());
    }
    let Some(hook) = &lifecycle.pre_stop else {
        return Ok(None);
    };
    if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        return Ok(Some(PreStop::Sleep(Duration::from_secs(seconds))));
    }
    let command = hook.exec.as_ref().and_then(|exec| exec.command.clone());
    let command = command.ok_or("lifecycle.preStop knows exec and sleep only here")?;
    Ok(Some(PreStop::Exec(command)))
}

/// The pod as our types have it; the error names the field.
pub(crate) fn typed(pod: &serde_json::Value) -> Result<Pod, String> {
    serde_json::from_value(pod.clone()).map_err(|error| error.to_string())
}

/// Named ports of a pod's containers.
pub(crate) fn named_ports(pod: &Pod) -> BTreeMap<String, u16> {
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten();
    let all = init.chain(spec.into_iter().flat_map(|spec| &spec.containers));
    all.flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests;
