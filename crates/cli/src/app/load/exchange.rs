//! One request and its answer, over HTTP, gRPC or TCP. A failure is a reason that can be counted.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tulle_runtime::tasks::Tasks;

use super::LoadArgs;
use super::report::Answerer;
use crate::app::call::request;
use crate::app::client::{self, HttpClient};
use crate::app::headers;
use crate::app::pb::echo::EchoRequest;
use crate::app::pb::echo::echo_client::EchoClient;
use crate::app::target::{Scheme, Target};
use crate::error::CliError;
use crate::output;

/// How requests are made.
#[derive(Debug)]
pub(super) struct Exchange {
    target: Arc<Target>,
    id_prefix: String,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    http2: bool,
    reuse: bool,
    server_first: bool,
    http: HttpClient,
    grpc: EchoClient<HttpClient>,
    idle: Mutex<Vec<Line>>,
}

/// A TCP connection that speaks in lines.
#[derive(Debug)]
struct Line {
    stream: BufReader<TcpStream>,
    answerer: Answerer,
}

impl Exchange {
    pub(super) fn new(
        args: &LoadArgs,
        target: Arc<Target>,
        id_prefix: String,
        tasks: Tasks,
    ) -> Result<Self, CliError> {
        if target.scheme == Scheme::Tls {
            return Err(CliError::Url {
                url: target.url.clone(),
                problem: "load goes over http, grpc or tcp".to_owned(),
            });
        }
        let http2 = args.http2 || target.scheme == Scheme::Grpc;
        let http = HttpClient::new(target.clone(), tasks, http2, !args.no_reuse);
        Ok(Self {
            id_prefix,
            method: args.method.clone(),
            headers: args.headers.clone(),
            body: Bytes::from(vec![b'x'; args.body_size]),
            http2,
            reuse: !args.no_reuse,
            server_first: args.server_first,
            grpc: EchoClient::with_origin(http.clone(), target.http_uri()?),
            http,
            idle: Mutex::default(),
            target,
        })
    }

    pub(super) async fn run(&self, number: u64) -> Result<Answerer, String> {
        let id = format!("{}-{number}", self.id_prefix);
        match self.target.scheme {
            Scheme::Http | Scheme::Tls => self.http(&id).await,
            Scheme::Grpc => self.grpc(id).await,
            Scheme::Tcp => self.tcp(&id).await,
        }
    }

    async fn http(&self, id: &str) -> Result<Answerer, String> {
        let (target, method) = (&self.target, self.method.clone());
        let request = request(target, self.http2, method, &self.headers, self.body.clone());
        let mut request = request.map_err(|error| error.to_string())?;
        if let Ok(id) = HeaderValue::from_str(id) {
            request.headers_mut().insert(headers::ID, id);
        }
        let answer = self
            .http
            .send(request)
            .await
            .map_err(|error| output::chain(&error))?;
        let (response, connection) = answer.into_parts();
        let (head, mut body) = response.into_parts();
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| format!("body: {}", output::chain(&error)))?;
        }
        self.http.give_back(connection).await;
        if head.status.as_u16() >= 400 {
            return Err(format!("status {}", head.status.as_u16()));
        }
        Ok(answerer(&head.headers))
    }

    async fn grpc(&self, id: String) -> Result<Answerer, String> {
        let request = EchoRequest {
            id,
            payload: self.body.to_vec(),
            ..EchoRequest::default()
        };
        match self.grpc.clone().unary(request).await {
            Ok(reply) => {
                let reply = reply.into_inner();
                Ok(Answerer {
                    version: Some(reply.version),
                    pod: Some(reply.pod),
                })
            }
            Err(status) => Err(format!("gRPC {:?}: {}", status.code(), status.message())),
        }
    }

    /// Sends a line and waits until it comes back, whatever its case.
    async fn tcp(&self, id: &str) -> Result<Answerer, String> {
        let idle = self.idle.lock().pop();
        let mut line = match idle {
            Some(line) => line,
            None => self.open().await?,
        };
        let mut sent = Vec::with_capacity(id.len() + self.body.len() + 1);
        sent.extend_from_slice(id.as_bytes());
        sent.extend_from_slice(&self.body);
        sent.push(b'\n');
        let broke = |error| format!("connection: {}", output::chain(&error));
        line.stream.write_all(&sent).await.map_err(broke)?;
        let received = line.read().await?;
        if !received.eq_ignore_ascii_case(&sent) {
            return Err("another line came back".to_owned());
        }
        let answerer = line.answerer.clone();
        if self.reuse {
            self.idle.lock().push(line);
        }
        Ok(answerer)
    }

    async fn open(&self) -> Result<Line, String> {
        let stream = client::connect(&self.target)
            .await
            .map_err(|error| output::chain(&error))?;
        let mut line = Line {
            stream: BufReader::new(stream),
            answerer: Answerer::default(),
        };
        if self.server_first {
            let banner = line.read().await?;
            // tulle-app NAME VERSION POD ready
            let banner = String::from_utf8_lossy(&banner).into_owned();
            let mut words = banner.split(' ').skip(2).map(str::to_owned);
            line.answerer = Answerer {
                version: words.next(),
                pod: words.next(),
            };
        }
        Ok(line)
    }
}

impl Line {
    async fn read(&mut self) -> Result<Vec<u8>, String> {
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line).await;
        match read.map_err(|error| format!("connection: {}", output::chain(&error)))? {
            0 => Err("connection: closed by the server".to_owned()),
            _ => Ok(line),
        }
    }
}

fn answerer(headers: &HeaderMap) -> Answerer {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
    Answerer {
        version: text(headers::VERSION),
        pod: text(headers::POD),
    }
}
