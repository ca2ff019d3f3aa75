//! The commands of the program, and the help that teaches them.

use clap::{Parser, Subcommand};

use crate::app::AppArgs;
use crate::cluster::check::CheckArgs;
use crate::cluster::proxy::Look;
use crate::cluster::status::StatusArgs;
use crate::cluster::uninstall::UninstallArgs;
use crate::cluster::upgrade::UpgradeArgs;
use crate::demo::DemoArgs;
use crate::inject::InjectArgs;
use crate::install::InstallArgs;
use crate::sandbox::SandboxArgs;

/// A service mesh for Kubernetes.
#[derive(Debug, Parser)]
#[command(
    name = "tulle",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "\
Try it without a cluster:
  tulle demo                               a whole mesh on this machine, in a minute
  tulle sandbox up -f manifests/           your own manifests, in the same way
  tulle inject -f deployment.yaml          see what the mesh adds to a workload
  tulle app serve --http 8080              an echo workload
  tulle app call http://127.0.0.1:8080/    ask it who answered
  tulle app load --url http://127.0.0.1:8080/ --rate 300 --duration 10s

In a cluster:
  tulle check --pre                        whether the mesh can be installed
  tulle install | kubectl apply --server-side -f -
  kubectl label namespace default tulle.dev/inject=enabled
  tulle check                              whether all of it works
  tulle status                             every proxy, and how far it is
  tulle proxy endpoints shop/web-7d9c      what one of them knows")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch a real mesh carry real traffic on this machine, step by step
    Demo(DemoArgs),
    /// Run your own manifests as a mesh on this machine
    Sandbox(SandboxArgs),
    /// Print what installs the mesh in a cluster
    Install(InstallArgs),
    /// Say whether a cluster can have the mesh, and whether the one that it has works
    Check(CheckArgs),
    /// Show what another version or other values would change in a cluster, and change it
    Upgrade(UpgradeArgs),
    /// Take everything that the mesh brought out of a cluster
    Uninstall(UninstallArgs),
    /// List the proxies, and how far each is with its configuration
    Status(StatusArgs),
    /// Add the sidecar to pods and workloads in manifest files
    Inject(InjectArgs),
    /// Echo workload, load generator and client, to try a mesh with
    App(AppArgs),
    /// Run the control plane
    Control(Box<tulle_control::Args>),
    /// Run the injector: the webhook that adds the sidecar to new pods
    Injector(Box<tulle_injector::Args>),
    /// Look into a pod's sidecar; or run one, or the capture before it, as `tulle-proxy` does
    Proxy {
        #[command(subcommand)]
        command: ProxyCommand,
    },
    /// Keep certificate files and a way to the control plane for an Envoy or gRPC xDS client
    Agent(Box<tulle_agent::Args>),
    /// Print the completion script of a shell
    #[command(after_help = "\
Examples:
  tulle completion bash > ~/.local/share/bash-completion/completions/tulle
  tulle completion zsh  > \"${fpath[1]}/_tulle\"
  tulle completion fish > ~/.config/fish/completions/tulle.fish")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands into a directory
    #[command(after_help = "\
Examples:
  tulle man ~/.local/share/man/man1")]
    Man {
        /// Where to; made if it is missing
        directory: std::path::PathBuf,
    },
}

/// What `tulle proxy` does.
#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    #[command(flatten)]
    Look(Look),
    #[command(flatten)]
    Role(tulle_proxy::args::Command),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
