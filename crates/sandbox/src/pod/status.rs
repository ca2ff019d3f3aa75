//! The status of a pod, as its file and the API show it.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::container::{Container, Exit, Phase, State};
use super::life::{Pod, Stage};
use super::plan::Turn;
use crate::network::GATEWAY_V4;
use crate::view::{ContainerView, PodView};

/// Seconds are all that Kubernetes writes.
pub(crate) fn timestamp(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second())
        .unwrap_or(at)
        .to_string()
}

/// What the pod looks like from outside.
pub(crate) fn view(pod: &Pod) -> PodView {
    let containers: Vec<_> = pod.containers.iter().map(container_view).collect();
    let stage = pod.stage();
    PodView {
        key: pod.key.clone(),
        ips: pod.ips,
        phase: phase(pod, &stage).to_owned(),
        ready: stage == Stage::Running && is_ready(pod),
        terminating: stage == Stage::Terminating,
        waiting: pod.waiting(),
        containers,
    }
}

/// Whether every container that must be ready is.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let mut lasting = pod
        .containers
        .iter()
        .filter(|container| container.plan.turn != Turn::Init);
    lasting.all(|container| container.state().ready)
}

/// The pod's `status`.
pub(crate) fn status(pod: &Pod) -> Value {
    let stage = pod.stage();
    let initialized = matches!(
        stage,
        Stage::Running | Stage::Terminating | Stage::Done { .. }
    );
    let serving = is_ready(pod);
    let ready = serving && matches!(stage, Stage::Running | Stage::Terminating);
    let list = |init: bool| -> Vec<Value> {
        let which = pod
            .containers
            .iter()
            .filter(|container| (container.plan.turn != Turn::App) == init);
        which.map(container_status).collect()
    };
    let started = timestamp(pod.created);
    let condition = |kind: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        json!({ "type": kind, "status": status, "lastTransitionTime": started })
    };
    json!({
        "phase": phase(pod, &stage),
        "hostIP": GATEWAY_V4.to_string(),
        "hostIPs": [{ "ip": GATEWAY_V4.to_string() }],
        "podIP": pod.ips.v4.to_string(),
        "podIPs": pod.ips.all().map(|ip| json!({ "ip": ip.to_string() })).collect::<Vec<_>>(),
        "startTime": started,
        "qosClass": "BestEffort",
        "conditions": [
            condition("PodScheduled", true),
            condition("Initialized", initialized),
            condition("ContainersReady", serving),
            condition("Ready", ready),
        ],
        "initContainerStatuses": list(true),
        "containerStatuses": list(false),
    })
}

fn phase(pod: &Pod, stage: &Stage) -> &'static str {
    match stage {
        Stage::Done { success: true } => "Succeeded",
        Stage::Done { success: false } => "Failed",
        Stage::Starting => "Pending",
        Stage::Running | Stage::Terminating => {
            let apps = pod
                .containers
                .iter()
                .filter(|container| container.plan.turn == Turn::App);
            let created = apps
                .clone()
                .any(|app| app.state().pid.is_some() || app.state().last.is_some());
            if created { "Running" } else { "Pending" }
        }
    }
}

fn container_view(container: &Container) -> ContainerView {
    let state = container.state();
    ContainerView {
        name: container.plan.name.clone(),
        init: container.plan.turn == Turn::Init,
        state: match &state.phase {
            Phase::Waiting { reason, .. } => reason.clone(),
            Phase::Running { .. } => "Running".to_owned(),
            Phase::Terminated(exit) => exit.reason().to_owned(),
        },
        message: match &state.phase {
            Phase::Waiting { message, .. } if !message.is_empty() => Some(message.clone()),
            _ => None,
        },
        ready: state.ready,
        restarts: state.restarts,
        pid: state.pid,
        exit_code: state.last.as_ref().map(|exit| exit.code),
    }
}

fn container_status(container: &Container) -> Value {
    let State {
        phase,
        last,
        restarts,
        started,
        ready,
        ..
    } = container.state();
    let current = match &phase {
        Phase::Waiting { reason, message } => {
            json!({ "waiting": { "reason": reason, "message": message } })
        }
        Phase::Running { since } => json!({ "running": { "startedAt": timestamp(*since) } }),
        Phase::Terminated(exit) => json!({ "terminated": terminated(exit) }),
    };
    let mut status = json!({
        "name": container.plan.name,
        "image": container.plan.image,
        "imageID": "",
        "ready": ready,
        "started": started,
        "restartCount": restarts,
        "state": current,
        "lastState": {},
    });
    if let Some(exit) = last.filter(|_| !matches!(phase, Phase::Terminated(_))) {
        status["lastState"] = json!({ "terminated": terminated(&exit) });
    }
    status
}

fn terminated(exit: &Exit) -> Value {
    let mut terminated = json!({
        "exitCode": exit.code,
        "reason": exit.reason(),
        "startedAt": timestamp(exit.started),
        "finishedAt": timestamp(exit.finished),
    });
    if let Some(signal) = exit.signal {
        terminated["signal"] = json!(signal);
    }
    terminated
}
