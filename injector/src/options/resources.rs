//! Compute resources of one pod's sidecar.

use tulle_runtime::names::annotations as names;

use crate::config::Resources;
use crate::{InjectError, quantity};

/// A sidecar that does nothing is at home in as much.
const LEAST_MEMORY: u64 = 16 << 20;

/// A resource, with the annotations that set it.
struct Kind {
    request: &'static str,
    limit: &'static str,
    read: fn(&str) -> Option<u64>,
    /// Nothing less makes sense.
    least: u64,
    remedy: &'static str,
}

const CPU: Kind = Kind {
    request: names::CPU_REQUEST,
    limit: names::CPU_LIMIT,
    read: quantity::cpu,
    least: 1,
    remedy: "write a number of processors, or of thousandths of one, such as `0.5` or `250m`",
};

const MEMORY: Kind = Kind {
    request: names::MEMORY_REQUEST,
    limit: names::MEMORY_LIMIT,
    read: quantity::memory,
    least: LEAST_MEMORY,
    remedy: "write a number of bytes of at least 16Mi, such as `64Mi` or `1Gi`",
};

/// The operator's resources after the pod had its say.
pub(super) fn parse<'a>(
    get: impl Fn(&str) -> Option<&'a str>,
    config: &Resources,
) -> Result<Resources, InjectError> {
    let (cpu_request, cpu_limit) =
        CPU.parse(&get, &config.cpu_request, config.cpu_limit.as_deref())?;
    let (memory_request, memory_limit) =
        MEMORY.parse(&get, &config.memory_request, config.memory_limit.as_deref())?;
    Ok(Resources {
        cpu_request,
        memory_request,
        cpu_limit,
        memory_limit,
    })
}

impl Kind {
    /// Request and limit.
    fn parse<'a>(
        &self,
        get: impl Fn(&str) -> Option<&'a str>,
        request: &str,
        limit: Option<&str>,
    ) -> Result<(String, Option<String>), InjectError> {
        let said = |name| get(name).map(|value| self.said(name, value)).transpose();
        let said_request = said(self.request)?;
        let limit = said(self.limit)?.or(limit);
        let request = said_request.unwrap_or(request);
        let both = (self.read)(request).zip(limit.and_then(self.read));
        let limited = both.filter(|(request, limit)| request > limit);
        match (limited, limit, said_request) {
            // The API server would refuse the pod, and name a container that its user did not write.
            (Some(_), Some(limit), Some(value)) => Err(InjectError::Annotation {
                name: self.request,
                value: value.to_owned(),
                problem: format!("it is more than the limit of {limit}"),
                remedy: "ask for less, or allow as much by the annotation for the limit",
            }),
            // What is asked for without being said follows a limit that is less.
            (Some(_), Some(limit), None) => Ok((limit.to_owned(), Some(limit.to_owned()))),
            _ => Ok((request.to_owned(), limit.map(str::to_owned))),
        }
    }

    fn said<'a>(&self, name: &'static str, value: &'a str) -> Result<&'a str, InjectError> {
        let value = value.trim();
        match (self.read)(value) {
            Some(amount) if amount >= self.least => Ok(value),
            amount => Err(InjectError::Annotation {
                name,
                value: value.to_owned(),
                problem: match amount {
                    Some(_) => "it is too little for a sidecar".to_owned(),
                    None => "it is not a quantity".to_owned(),
                },
                remedy: self.remedy,
            }),
        }
    }
}
