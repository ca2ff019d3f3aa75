//! The `main` of a test program over the sandbox.
//!
//! The process is three things by turns: a container's first program (the sandbox starts it again), `tulle` itself (so
//! that pods run the very code under test), and the tests, inside a node of their own. Invariant: no thread exists
//! before that is decided.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parking_lot::RwLock;

use crate::gate::{self, Missing};
use crate::mesh::{Mesh, Stage};
use crate::scale;

/// At most this many tests at a time: each brings up pods, and timing is part of what is tested.
pub(crate) const THREADS: usize = 2;

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// What the tests of a program share, brought up by the first that wants it.
pub trait World: 'static {
    /// Runs a test's future on the calling thread.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T;
}

/// A test, in a [`Mesh`] unless something else is said.
#[derive(Debug)]
pub struct Case<W: World = Mesh> {
    name: &'static str,
    needs: &'static [&'static str],
    run: fn(&W) -> Running<'_>,
}

impl<W: World> Case<W> {
    /// A test under the name that its path gives it. It needs programs, as [`gate::require`] knows them; the word
    /// `alone` among them keeps others from running beside it, `soak` leaves it to tests/soak, and `previous` to tests/upgrade.
    #[must_use]
    pub fn new(
        path: &'static str,
        needs: &'static [&'static str],
        run: fn(&W) -> Running<'_>,
    ) -> Self {
        let name = path.split_once("::").map_or(path, |(_, name)| name);
        Self { name, needs, run }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Plays it in the world that is there or will be, when it is its turn.
    pub(crate) fn play<'a>(
        &self,
        world: impl FnOnce() -> Result<&'a W, String>,
        turns: &RwLock<()>,
    ) -> Result<Completion, Failed> {
        if self.needs.contains(&"soak") && !scale::is_full() {
            return Ok(Completion::ignored_with("played by tests/soak"));
        }
        if self.needs.contains(&"previous") && std::env::var_os(gate::PREVIOUS).is_none() {
            return Ok(Completion::ignored_with("played by tests/upgrade"));
        }
        let needs = self
            .needs
            .iter()
            .filter(|need| !["alone", "soak", "previous"].contains(*need));
        for need in needs {
            match gate::require(need) {
                Ok(()) => {}
                Err(Missing::Skip(reason)) => return Ok(Completion::ignored_with(reason)),
                Err(Missing::Fail(reason)) => return Err(reason.into()),
            }
        }
        let alone = self.needs.contains(&"alone");
        let (_exclusive, _shared) = (alone.then(|| turns.write()), (!alone).then(|| turns.read()));
        let world = world()?;
        world
            .block_on((self.run)(world))
            .map_err(|error| Failed::from(format!("{error:#}")))?;
        Ok(Completion::Completed)
    }
}

/// Lists the tests of a file: `cases! { name; name [need, need]; }` makes `fn cases() -> Vec<Case>`. Each is an
/// `async fn(&Mesh) -> anyhow::Result<()>`; of another [`World`] after `in World:`.
#[macro_export]
macro_rules! cases {
    ($($name:ident $([$($need:literal),+])?;)+) => {
        $crate::cases! { in $crate::Mesh: $($name $([$($need),+])?;)+ }
    };
    (in $world:ty: $($name:ident $([$($need:literal),+])?;)+) => {
        pub(crate) fn cases() -> Vec<$crate::Case<$world>> {
            vec![$($crate::Case::new(
                concat!(module_path!(), "::", stringify!($name)),
                &[$($($need),+)?],
                |world| Box::pin($name(world)),
            )),+]
        }
    };
}

/// What `tulle` does, if this process was started under that name. Call it before any thread exists.
#[must_use]
pub fn as_tulle() -> Option<ExitCode> {
    tulle_sandbox::dispatch();
    let program = std::env::args_os().next().unwrap_or_default();
    match Path::new(&program).file_name()?.to_str()? {
        "tulle" => Some(tulle_cli::main()),
        "tulle-proxy" => {
            let arguments = std::env::args_os().skip(1);
            let words = ["tulle".into(), "proxy".into()].into_iter();
            Some(tulle_cli::run(words.chain(arguments)))
        }
        _ => None,
    }
}

/// Runs the tests as `cargo test` expects. Call it first in `main`.
#[must_use]
pub fn run(cases: Vec<Case>) -> ExitCode {
    if let Some(status) = as_tulle() {
        return status;
    }
    let mut arguments = Arguments::from_args();
    if arguments.list {
        let listed = cases
            .into_iter()
            .map(|case| Trial::test(case.name, || Ok(())));
        return libtest_mimic::run(&arguments, listed.collect()).exit_code();
    }
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(THREADS).min(THREADS));
    let stage = match tulle_sandbox::enter_node() {
        Ok(node) => Ok(Arc::new(Stage::new(node))),
        Err(error) => Err(gate::missing(
            gate::NETNS,
            &format!("{:#}", anyhow::Error::new(error)),
        )),
    };
    let turns = Arc::new(RwLock::new(()));
    let trials = cases.into_iter().map(|case| {
        let (stage, turns) = (stage.clone(), turns.clone());
        Trial::ignorable_test(case.name, move || match &stage {
            Ok(stage) => case.play(|| stage.mesh(), &turns),
            Err(Missing::Skip(reason)) => Ok(Completion::ignored_with(reason)),
            Err(Missing::Fail(reason)) => Err(reason.into()),
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs a benchmark in a mesh of its own, inside a node. Call it early in `main`, after what else the process may be was
/// ruled out.
pub fn with_mesh<T>(bench: impl AsyncFnOnce(&Mesh) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mesh = Mesh::build(tulle_sandbox::enter_node()?)?;
    mesh.block_on(bench(&mesh))
}

/// Set once; what it holds lives until the process ends.
pub(crate) type Once<T> = OnceLock<Result<T, String>>;
