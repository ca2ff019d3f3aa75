//! `tulle` as a person runs it: a process in one terminal, and commands to it from another. This executable is both the
//! tests and, under the name `tulle`, the program.

mod cluster;
mod commands;
mod demo;
mod install;
mod output;
mod terminal;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parking_lot::RwLock;
use tulle_tests::gate::{self, Missing};

use terminal::Terminal;

type Test = fn(&Terminal) -> anyhow::Result<()>;

/// What a test needs of the machine.
#[derive(Clone, Copy)]
enum Place {
    /// Other sandboxes may run beside it.
    Shared,
    /// As that, on a machine that can run a Kubernetes cluster.
    Cluster,
    /// As that, on a machine with Helm.
    Helm,
    /// It measures what a busy machine would change, so nothing runs beside it.
    Alone,
}

impl Place {
    /// What the machine must have for it.
    fn need(self) -> &'static str {
        match self {
            Self::Cluster => gate::CLUSTER,
            Self::Helm => "helm",
            Self::Shared | Self::Alone => gate::NETNS,
        }
    }
}

/// Held by every test while it runs; for itself by one that wants to be alone.
static MACHINE: RwLock<()> = RwLock::new(());

const TESTS: [(&str, Place, Test); 14] = [
    (
        "commands_reach_a_running_sandbox_and_say_what_is_not_there",
        Place::Shared,
        commands::reach_a_running_sandbox_and_say_what_is_not_there,
    ),
    (
        "a_kept_demo_answers_the_commands_that_it_prints",
        Place::Shared,
        commands::a_kept_demo_answers_the_commands_that_it_prints,
    ),
    (
        "a_demo_that_is_ended_early_leaves_nothing_behind",
        Place::Shared,
        commands::a_demo_that_is_ended_early_leaves_nothing_behind,
    ),
    (
        "edits_that_are_refused_and_mended_are_told",
        Place::Shared,
        commands::edits_that_are_refused_and_mended_are_told,
    ),
    (
        "of_two_sandboxes_one_is_chosen",
        Place::Shared,
        commands::of_two_sandboxes_one_is_chosen,
    ),
    (
        "an_output_that_is_full_is_an_error_and_one_that_is_closed_is_none",
        Place::Shared,
        output::full_is_an_error_and_closed_is_none,
    ),
    (
        "styles_and_progress_are_for_terminals_alone",
        Place::Shared,
        output::styles_and_progress_are_for_terminals_alone,
    ),
    (
        "files_with_nothing_to_inject_are_said",
        Place::Shared,
        output::files_with_nothing_to_inject_are_said,
    ),
    (
        "the_cluster_command_says_how_it_is_used",
        Place::Cluster,
        cluster::says_how_it_is_used,
    ),
    (
        "the_cluster_command_runs_a_command_and_ends_with_it",
        Place::Cluster,
        cluster::runs_a_command_and_ends_with_it,
    ),
    (
        "the_cluster_command_leaves_nothing_when_it_is_killed",
        Place::Cluster,
        cluster::leaves_nothing_when_it_is_killed,
    ),
    (
        "helm_renders_what_tulle_installs",
        Place::Helm,
        install::helm_renders_what_tulle_installs,
    ),
    (
        "values_that_helm_refuses_are_refused",
        Place::Helm,
        install::values_that_helm_refuses_are_refused,
    ),
    (
        "every_step_of_the_demo_holds",
        Place::Alone,
        demo::every_step_holds,
    ),
];

fn main() -> ExitCode {
    if let Some(status) = tulle_tests::as_tulle() {
        return status;
    }
    let tests =
        TESTS.map(|(name, place, test)| Trial::ignorable_test(name, move || play(place, test)));
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, tests.into()).exit_code()
}

fn play(place: Place, test: Test) -> Result<Completion, Failed> {
    let ended = match place {
        Place::Cluster | Place::Helm => match gate::require(place.need()) {
            Ok(()) => {
                let _machine = MACHINE.read();
                Terminal::new().and_then(|terminal| test(&terminal))
            }
            Err(missing) => return left_out(missing),
        },
        Place::Shared => {
            let _machine = MACHINE.read();
            Terminal::new().and_then(|terminal| test(&terminal))
        }
        Place::Alone => {
            let _machine = MACHINE.write();
            Terminal::new().and_then(|terminal| test(&terminal))
        }
    };
    let Err(error) = ended else {
        return Ok(Completion::Completed);
    };
    let reason = format!("{error:#}");
    // The words of the sandbox where the machine does not permit namespaces.
    if !reason.contains("does not let the sandbox") {
        return Err(reason.into());
    }
    left_out(gate::missing(gate::NETNS, &reason))
}

fn left_out(missing: Missing) -> Result<Completion, Failed> {
    match missing {
        Missing::Skip(reason) => Ok(Completion::ignored_with(reason)),
        Missing::Fail(reason) => Err(reason.into()),
    }
}
