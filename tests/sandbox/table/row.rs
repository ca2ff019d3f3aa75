//! A row of the table: what a client sends, what the backend must see, what comes back, and who deviates.

use std::time::Duration;

use super::message::Message;

/// One row. What is not said has its usual value: the backend answers `200` with the body `ok`.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The failure class that it covers; 0: none in particular.
    pub(crate) class: u8,
    /// The section that says so.
    pub(crate) rfc: &'static str,
    pub(crate) steps: Vec<Step>,
    pub(crate) answers: Vec<Answer>,
    /// Whole requests that the backend gets.
    pub(crate) sees: Vec<Expected>,
    /// Whether the backend may get the beginning of another one.
    pub(crate) partial: bool,
    /// Responses that the client gets.
    pub(crate) gets: Vec<Expected>,
    /// Whether the responses are to `HEAD`.
    pub(crate) head: bool,
    pub(crate) end: End,
    /// How long the client stays for more when it has all that is expected.
    pub(crate) lingers: Duration,
    /// Whether the row is about one listener only.
    pub(crate) only: Option<Listener>,
}

/// A listener of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    Outbound,
    Inbound,
}

/// What the client does next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Waits until the backend has got so many heads.
    Reaches(usize),
    /// Waits until so many heads of responses have come.
    Hears(usize),
    /// Closes its side.
    Finish,
}

/// What the backend answers to a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// Whether it does not wait for the body.
    pub(crate) early: bool,
    /// Whether it closes then.
    pub(crate) closes: bool,
}

/// How the client's connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Another request is answered on it.
    Open,
    /// The proxy closes it.
    Closed,
    /// It carries these bytes of another protocol, and ends with its client.
    Tunnel {
        client: &'static str,
        backend: &'static str,
    },
    /// An answer began, and the proxy closed the connection before its end.
    Cut,
    /// The client leaves it.
    Left,
}

/// A message as it must be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    start: String,
    fields: Vec<(String, String)>,
    absent: Vec<String>,
    /// `None`: whatever it is.
    body: Option<Vec<u8>>,
    trailers: Vec<(String, String)>,
}

/// A row of that name.
pub(crate) fn row(name: &'static str) -> Row {
    Row {
        name,
        class: 0,
        rfc: "",
        steps: Vec::new(),
        answers: Vec::new(),
        sees: Vec::new(),
        partial: false,
        gets: Vec::new(),
        head: false,
        end: End::Open,
        lingers: Duration::ZERO,
        only: None,
    }
}

impl Row {
    pub(crate) fn class(mut self, class: u8) -> Self {
        self.class = class;
        self
    }

    pub(crate) fn rfc(mut self, section: &'static str) -> Self {
        self.rfc = section;
        self
    }

    pub(crate) fn sends(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.steps.push(Step::Send(bytes.as_ref().to_vec()));
        self
    }

    pub(crate) fn reaches(mut self, heads: usize) -> Self {
        self.steps.push(Step::Reaches(heads));
        self
    }

    pub(crate) fn hears(mut self, heads: usize) -> Self {
        self.steps.push(Step::Hears(heads));
        self
    }

    pub(crate) fn finishes(mut self) -> Self {
        self.steps.push(Step::Finish);
        self
    }

    /// What the backend answers to the next request.
    pub(crate) fn answers(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.answers.push(Answer {
            bytes: bytes.as_ref().to_vec(),
            ..Answer::default()
        });
        self
    }

    /// It closes its connection after the last answer given.
    pub(crate) fn closes(mut self) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.closes = true;
        }
        self
    }

    /// It does not wait for the body before the last answer given.
    pub(crate) fn early(mut self) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.early = true;
        }
        self
    }

    /// `METHOD target`, then a field a line (`!name`: it is absent, `name: *`: it is there, `name: not x`: it is there with
    /// another value), then after an empty line the body, which is empty
    /// if it is not given.
    pub(crate) fn sees(mut self, request: &str) -> Self {
        let mut request = Expected::of(request);
        request.body.get_or_insert_default();
        self.sees.push(request);
        self
    }

    /// Status, fields and body in the same form; a body that is not given does not matter.
    pub(crate) fn gets(mut self, response: &str) -> Self {
        self.gets.push(Expected::of(response));
        self
    }

    /// The body of the response given last, which is no text.
    pub(crate) fn gets_body(mut self, body: &[u8]) -> Self {
        if let Some(response) = self.gets.last_mut() {
            response.body = Some(body.to_vec());
        }
        self
    }

    /// The body of the request given last, which is no text.
    pub(crate) fn sees_body(mut self, body: &[u8]) -> Self {
        if let Some(request) = self.sees.last_mut() {
            request.body = Some(body.to_vec());
        }
        self
    }

    /// A field after the body of the request given last.
    pub(crate) fn sees_trailer(mut self, trailer: &str) -> Self {
        if let Some(request) = self.sees.last_mut() {
            request.trailers.push(pair(trailer));
        }
        self
    }

    /// A field after the body of the response given last.
    pub(crate) fn gets_trailer(mut self, trailer: &str) -> Self {
        if let Some(response) = self.gets.last_mut() {
            response.trailers.push(pair(trailer));
        }
        self
    }

    pub(crate) fn head(mut self) -> Self {
        self.head = true;
        self
    }

    /// Nothing reaches the backend any more, and the client gets this status and the end.
    pub(crate) fn refused(mut self, status: u16) -> Self {
        self.end = End::Closed;
        self.gets(&status.to_string())
    }

    /// The backend may have got the beginning of what is refused.
    pub(crate) fn partly(mut self) -> Self {
        self.partial = true;
        self
    }

    pub(crate) fn ends(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    pub(crate) fn only(mut self, listener: Listener) -> Self {
        self.only = Some(listener);
        self
    }
}

impl Expected {
    fn of(text: &str) -> Self {
        let (head, body) = match text.split_once("\n\n") {
            Some((head, body)) => (head, Some(body.as_bytes().to_vec())),
            None => (text, None),
        };
        let mut lines = head.lines();
        let start = lines.next().unwrap_or_default().to_owned();
        let (absent, fields): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with('!'));
        Self {
            start,
            fields: fields.into_iter().map(pair).collect(),
            absent: absent.iter().map(|name| name[1..].to_owned()).collect(),
            body,
            trailers: Vec::new(),
        }
    }

    /// First line and body, for a summary.
    pub(crate) fn essence(&self) -> (&str, &[u8]) {
        (&self.start, self.body.as_deref().unwrap_or_default())
    }

    /// Status of a response; 0 of a request.
    pub(crate) fn status(&self) -> u16 {
        self.start.parse().unwrap_or(0)
    }

    /// What is wrong with a message that has this first line.
    pub(crate) fn compare(&self, start: &str, message: &Message) -> Result<(), String> {
        if start != self.start {
            return Err(format!("{start:?} instead of {:?}", self.start));
        }
        for (name, value) in &self.fields {
            let found = message.field(name);
            let right = found
                .as_ref()
                .is_some_and(|found| match value.strip_prefix("not ") {
                    Some(other) => found != other,
                    None => value == "*" || found == value,
                });
            if !right {
                return Err(format!("{name} is {found:?}, not {value:?}"));
            }
        }
        if let Some(name) = self
            .absent
            .iter()
            .find(|name| message.field(name).is_some())
        {
            return Err(format!("{name} is there: {:?}", message.field(name)));
        }
        if let Some(body) = &self.body
            && *body != message.body
        {
            let found = String::from_utf8_lossy(&message.body);
            return Err(format!(
                "the body is {found:.200?} ({} bytes)",
                message.body.len()
            ));
        }
        if self.trailers != message.trailers {
            return Err(format!("the trailers are {:?}", message.trailers));
        }
        Ok(())
    }
}

fn pair(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, "*"));
    (name.to_owned(), value.trim().to_owned())
}
