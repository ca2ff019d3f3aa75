//! `tulle` as a person runs it: a process in one terminal, and commands to it from another. This executable is both the
//! tests and, under the name `tulle`, the program.

mod commands;
mod terminal;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tulle_tests::gate::{self, Missing};

use terminal::Terminal;

type Test = fn(&Terminal) -> anyhow::Result<()>;

const TESTS: [(&str, Test); 3] = [
    (
        "commands_reach_a_running_sandbox_and_say_what_is_not_there",
        commands::reach_a_running_sandbox_and_say_what_is_not_there,
    ),
    (
        "a_kept_demo_answers_the_commands_that_it_prints",
        commands::a_kept_demo_answers_the_commands_that_it_prints,
    ),
    (
        "a_demo_that_is_ended_early_leaves_nothing_behind",
        commands::a_demo_that_is_ended_early_leaves_nothing_behind,
    ),
];

fn main() -> ExitCode {
    if let Some(status) = tulle_tests::as_tulle() {
        return status;
    }
    let tests = TESTS.map(|(name, test)| Trial::ignorable_test(name, move || play(test)));
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, tests.into()).exit_code()
}

fn play(test: Test) -> Result<Completion, Failed> {
    let ended = Terminal::new().and_then(|terminal| test(&terminal));
    let Err(error) = ended else {
        return Ok(Completion::Completed);
    };
    let reason = format!("{error:#}");
    // The words of the sandbox where the machine does not permit namespaces.
    if !reason.contains("does not let the sandbox") {
        return Err(reason.into());
    }
    match gate::missing(gate::NETNS, &reason) {
        Missing::Skip(reason) => Ok(Completion::ignored_with(reason)),
        Missing::Fail(reason) => Err(reason.into()),
    }
}
