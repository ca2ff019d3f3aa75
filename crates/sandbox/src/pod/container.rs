//! One container: started, probed, restarted with back-off, and ended.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use tulle_runtime::causes::chain;

use super::life::Pod;
use super::log::Log;
use super::plan::{ContainerPlan, PreStop};
use super::process::MountNamespace;
use super::{probe, process};
use crate::Error;
use crate::stage::Spec;
use crate::view::What;

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// After this long, a container that ends is not crash looping.
const SETTLED: Duration = Duration::from_secs(60);

/// A container of a pod.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) plan: ContainerPlan,
    pub(crate) log: Log,
    state: Mutex<State>,
}

/// Where a container is in its life.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) last: Option<Exit>,
    pub(crate) restarts: u32,
    pub(crate) started: bool,
    pub(crate) ready: bool,
    pub(crate) pid: Option<u32>,
}

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Waiting { reason: String, message: String },
    Running { since: Timestamp },
    Terminated(Exit),
}

/// How a container ended.
#[derive(Debug, Clone)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
}

impl Exit {
    fn new(status: ExitStatus, started: Timestamp) -> Self {
        let signal = status.signal();
        Self {
            code: status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0)),
            signal,
            started,
            finished: Timestamp::now(),
        }
    }

    pub(crate) fn success(&self) -> bool {
        self.code == 0
    }

    pub(crate) fn reason(&self) -> &'static str {
        if self.success() { "Completed" } else { "Error" }
    }
}

/// Tells a container to end, by when; the first word counts unless a later one is sooner.
pub(crate) type Stop = watch::Receiver<Option<Instant>>;

async fn stopped(stop: &mut Stop) -> Instant {
    match stop.wait_for(Option::is_some).await {
        Ok(deadline) => deadline.unwrap_or_else(Instant::now),
        // Whoever could have stopped it is gone: so should it be.
        Err(_) => Instant::now(),
    }
}

/// Its first process.
struct Running {
    child: Child,
    pid: u32,
    mounts: Option<MountNamespace>,
    since: Timestamp,
}

impl Container {
    pub(crate) fn new(plan: ContainerPlan, log: PathBuf) -> Self {
        let phase = Phase::Waiting {
            reason: "PodInitializing".to_owned(),
            message: String::new(),
        };
        Self {
            plan,
            log: Log::new(log),
            state: Mutex::new(State {
                phase,
                last: None,
                restarts: 0,
                started: false,
                ready: false,
                pid: None,
            }),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.lock().clone()
    }

    fn change(&self, pod: &Pod, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        pod.changed();
    }

    /// Runs it, again and again where its policy says so, until it is done (`Some`) or stopped (`None`).
    pub(crate) async fn supervise(&self, pod: &Pod, mut stop: Stop) -> Option<Exit> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let began = Instant::now();
            let exit = match self.start(pod).await {
                Ok(running) => {
                    let exit = self.attend(pod, running, &mut stop).await;
                    if stop.borrow().is_some() {
                        return None;
                    }
                    if !self.plan.restart.after(exit.success()) {
                        return Some(exit);
                    }
                    Some(exit)
                }
                Err(problem) => {
                    self.refuse(pod, problem);
                    None
                }
            };
            let delay = match exit {
                // As in Kubernetes, the first restart is at once.
                Some(_) if self.state.lock().restarts == 0 || began.elapsed() > SETTLED => {
                    Duration::ZERO
                }
                _ => backoff,
            };
            if delay.is_zero() {
                backoff = FIRST_BACKOFF;
            } else {
                backoff = (backoff * 2).min(MAX_BACKOFF);
                if let Some(exit) = exit {
                    self.crash_looping(pod, &exit, delay);
                }
            }
            tokio::select! {
                biased;
                _ = stopped(&mut stop) => return None,
                () = sleep(delay) => {}
            }
            self.change(pod, |state| state.restarts += 1);
        }
    }

    fn refuse(&self, pod: &Pod, problem: String) {
        pod.tell(
            What::Refused,
            format!("container {}: {problem}", self.plan.name),
        );
        self.change(pod, |state| {
            state.phase = Phase::Waiting {
                reason: "RunContainerError".to_owned(),
                message: problem,
            };
        });
    }

    fn crash_looping(&self, pod: &Pod, exit: &Exit, delay: Duration) {
        let message = format!("exit code {}, next start in {delay:?}", exit.code);
        self.change(pod, |state| {
            state.phase = Phase::Waiting {
                reason: "CrashLoopBackOff".to_owned(),
                message,
            };
        });
    }

    /// Starts its first process and waits until that has become the program.
    async fn start(&self, pod: &Pod) -> Result<Running, String> {
        let failed = |error: Error| chain(&error);
        let io = |what: &'static str| move |error: std::io::Error| chain(&Error::io(what)(error));
        let (output, log) = self.log.writer().map_err(io("open a log"))?;
        pod.kubelet.tasks.spawn_connection("log", log);
        let (read, report) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|errno| errno.to_string())?;
        let mut read = pipe::Receiver::from_owned_fd(read).map_err(io("open a pipe"))?;
        let spec = Spec {
            report: true,
            join: None,
            argv: self.plan.argv.clone(),
            this_program: self.plan.this_program,
            ..self.spec(pod).map_err(failed)?
        };
        let mut command = process::command(&spec, &self.environment(pod)).map_err(failed)?;
        let errors = output.try_clone().map_err(io("share a log"))?;
        command
            .stdin(Stdio::from(report))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(errors));
        let mut child = command.spawn().map_err(io("start a process"))?;
        // Our ends of the pipes, which would keep them open.
        drop(command);
        let mut problem = String::new();
        read.read_to_string(&mut problem)
            .await
            .map_err(io("read a report"))?;
        let pid = child.id().unwrap_or_default();
        if !problem.is_empty() {
            let _ = child.wait().await;
            return Err(problem);
        }
        let since = Timestamp::now();
        self.change(pod, |state| {
            state.phase = Phase::Running { since };
            state.pid = Some(pid);
            state.started = false;
        });
        pod.tell(What::Started, format!("container {}", self.plan.name));
        Ok(Running {
            child,
            pid,
            mounts: MountNamespace::of(pid),
            since,
        })
    }

    /// Waits for its end, whoever brings it about, and clears out what it left behind.
    async fn attend(&self, pod: &Pod, mut running: Running, stop: &mut Stop) -> Exit {
        let status = tokio::select! {
            biased;
            status = running.child.wait() => status,
            deadline = stopped(stop) => self.end(pod, &mut running, deadline, stop).await,
            problem = self.probe(pod) => {
                pod.tell(What::Unready, format!("container {}: {problem}", self.plan.name));
                self.end(pod, &mut running, Instant::now() + pod.plan.grace, stop).await
            }
        };
        if let Some(mounts) = &running.mounts {
            mounts.clear().await;
        }
        let exit = match status {
            Ok(status) => Exit::new(status, running.since),
            Err(error) => {
                tracing::warn!(%error, container = self.plan.name, "cannot wait for a process");
                Exit::new(ExitStatus::from_raw(1 << 8), running.since)
            }
        };
        let told = match exit.signal.and_then(|signal| Signal::try_from(signal).ok()) {
            Some(signal) => format!("container {} by {signal}", self.plan.name),
            None => format!("container {} with status {}", self.plan.name, exit.code),
        };
        pod.tell(What::Ended, told);
        self.change(pod, |state| {
            state.phase = Phase::Terminated(exit.clone());
            state.last = Some(exit.clone());
            (state.started, state.ready, state.pid) = (false, false, None);
        });
        exit
    }

    /// Hook, SIGTERM, and at the deadline SIGKILL.
    async fn end(
        &self,
        pod: &Pod,
        running: &mut Running,
        deadline: Instant,
        stop: &mut Stop,
    ) -> std::io::Result<ExitStatus> {
        let gentle = async {
            match &self.plan.pre_stop {
                None => {}
                Some(PreStop::Sleep(time)) => sleep(*time).await,
                Some(PreStop::Exec(argv)) => {
                    if let Err(problem) = self.exec(pod, argv).await {
                        pod.tell(
                            What::Refused,
                            format!("preStop of container {}: {problem}", self.plan.name),
                        );
                    }
                }
            }
            process::signal(running.pid, Signal::SIGTERM);
            running.child.wait().await
        };
        let sooner = async {
            // A later word can only shorten the time.
            while stop.changed().await.is_ok() {
                let latest = *stop.borrow();
                if latest.is_some_and(|latest| latest <= Instant::now()) {
                    return;
                }
            }
            std::future::pending().await
        };
        let ended = tokio::select! {
            biased;
            ended = timeout_at(deadline, gentle) => ended.ok(),
            () = sooner => None,
        };
        match ended {
            Some(status) => status,
            None => {
                process::signal(running.pid, Signal::SIGKILL);
                running.child.wait().await
            }
        }
    }

    /// Resolves when the container must be restarted; keeps `started` and `ready` current until then.
    async fn probe(&self, pod: &Pod) -> String {
        let probes = &self.plan.probes;
        let site = Inside {
            container: self,
            pod,
        };
        if let Some(startup) = &probes.startup
            && let Err(problem) = startup.until_started(&site).await
        {
            return problem;
        }
        self.change(pod, |state| {
            state.started = true;
            state.ready = probes.readiness.is_none();
        });
        let readiness = async {
            match &probes.readiness {
                Some(probe) => {
                    probe
                        .follow(&site, |ready| self.change(pod, |state| state.ready = ready))
                        .await
                }
                None => std::future::pending().await,
            }
        };
        let liveness = async {
            match &probes.liveness {
                Some(probe) => probe.until_dead(&site).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            problem = liveness => problem,
            () = readiness => std::future::pending().await,
        }
    }

    /// Runs a program in the container to its end; not zero is an error.
    async fn exec(&self, pod: &Pod, argv: &[String]) -> Result<(), String> {
        let mut command = self.join(pod, argv).map_err(|error| error.to_string())?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let status = command.status().await.map_err(|error| error.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{} ended with {status}", argv.join(" ")))
        }
    }

    /// A command that runs beside the container's program, in its namespaces and with its environment. The program
    /// `tulle` is this one.
    pub(crate) fn join(
        &self,
        pod: &Pod,
        argv: &[String],
    ) -> Result<tokio::process::Command, Error> {
        let pid = self.state.lock().pid.ok_or_else(|| Error::Missing {
            kind: "running container",
            name: format!("{} in pod {}", self.plan.name, pod.key),
        })?;
        let spec = Spec {
            join: Some(pid),
            argv: argv.to_vec(),
            this_program: argv.first().is_some_and(|program| program == "tulle"),
            report: false,
            ..self.spec(pod)?
        };
        process::command(&spec, &self.environment(pod))
    }

    fn environment(&self, pod: &Pod) -> Vec<(String, String)> {
        let mut environment = pod.kubelet.base_environment.clone();
        environment.push(("HOSTNAME".to_owned(), pod.plan.hostname.clone()));
        environment.extend(self.plan.environment.iter().cloned());
        environment
    }

    fn spec(&self, pod: &Pod) -> Result<Spec, Error> {
        Ok(Spec {
            netns: pod.netns()?.path(),
            join: None,
            hostname: pod.plan.hostname.clone(),
            binds: self.plan.binds.clone(),
            user: self.plan.user.clone(),
            capabilities: self.plan.capabilities,
            directory: self.plan.directory.clone(),
            argv: Vec::new(),
            this_program: false,
            report: false,
        })
    }
}

/// A container of a running pod, where its probes are done.
struct Inside<'a> {
    container: &'a Container,
    pod: &'a Pod,
}

impl probe::Site for Inside<'_> {
    async fn check(&self, action: &probe::Action) -> Result<(), String> {
        match action {
            probe::Action::Exec(argv) => self.container.exec(self.pod, argv).await,
            other => {
                let netns = self.pod.netns().map_err(|error| error.to_string())?;
                probe::ask(netns, self.pod.ips.v4.into(), other).await
            }
        }
    }
}
