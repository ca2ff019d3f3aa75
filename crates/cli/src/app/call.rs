//! `tulle app call`: one request, and the answer in full. For machines without curl, and for looking a sidecar in the
//! eye: `tls://` shows which identity it presents and how it refuses a client that has none.

mod tls;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::body::Body;
use tulle_runtime::env::parse_duration;
use tulle_runtime::tasks::Tasks;

use crate::app::client::{self, HttpClient};
use crate::app::pb::echo::EchoRequest;
use crate::app::pb::echo::echo_client::EchoClient;
use crate::app::serve::listed;
use crate::app::target::{Scheme, Target};
use crate::error::CliError;
use crate::output;

/// What sidecars offer each other for HTTP/1.1.
const MESH_ALPN: &str = "tulle-http1";

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tulle app call http://web/                     HTTP/1.1; --http2 for h2c
  tulle app call http://web/ --method POST --data hello --header x-user:me
  tulle app call grpc://ledger:9000              the echo service, as `tulle app serve` has it
  tulle app call tcp://greeter:2525 --data hello sends, closes its side, prints all that comes back
  tulle app call tls://192.0.2.7:8080            a TLS handshake without a client certificate

Ends with status 0 if the answer is a success (HTTP below 400, gRPC OK, TLS accepted), else 1.")]
pub(crate) struct CallArgs {
    /// Where to call: http://, grpc://, tcp:// or tls://
    url: String,
    /// HTTP method; POST if there is data, else GET
    #[arg(short = 'X', long)]
    method: Option<Method>,
    /// Header as NAME:VALUE; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Body of the request, message of the gRPC call, or bytes to send
    #[arg(short, long)]
    data: Option<String>,
    /// HTTP/2 without TLS, instead of HTTP/1.1
    #[arg(long)]
    http2: bool,
    /// Protocol to offer in the TLS handshake
    #[arg(long, default_value = MESH_ALPN)]
    alpn: String,
    /// How long it may take
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Reads a header as curl does.
pub(super) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let pair = text.split_once(':');
    let parsed = pair
        .and_then(|(name, value)| Some((name.trim().parse().ok()?, value.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected NAME:VALUE, such as x-user:me".to_owned())
}

/// What came back.
#[derive(Debug)]
struct Reply {
    success: bool,
    /// For people.
    text: String,
    /// For machines.
    json: Value,
}

pub(crate) async fn run(args: CallArgs) -> Result<ExitCode, CliError> {
    let target = Arc::new(Target::parse(&args.url)?);
    let reply = match tokio::time::timeout(args.timeout, call(&args, &target)).await {
        Ok(reply) => reply?,
        Err(_) => {
            return Err(no_answer(
                &target,
                format!("nothing within {:?}", args.timeout),
            ));
        }
    };
    if args.json {
        output::line(&reply.json)?;
    } else {
        output::bytes(reply.text.as_bytes())?;
    }
    Ok(if reply.success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn call(args: &CallArgs, target: &Arc<Target>) -> Result<Reply, CliError> {
    match target.scheme {
        Scheme::Http => http(args, target).await,
        Scheme::Grpc => grpc(args, target).await,
        Scheme::Tcp => tcp(args, target).await,
        Scheme::Tls => {
            let stream = client::connect(target)
                .await
                .map_err(|error| failed(target, &error))?;
            Ok(tls::probe(stream, target, &args.alpn).await)
        }
    }
}

/// What the server of a `tls://` URL presents to a client without a certificate, its own certificate first.
pub(crate) async fn presented(url: &str) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let target = Target::parse(url)?;
    let stream = client::connect(&target)
        .await
        .map_err(|error| failed(&target, &error))?;
    Ok(tls::look(stream, &target, MESH_ALPN).await.chain)
}

fn failed(target: &Target, error: &dyn std::error::Error) -> CliError {
    no_answer(target, output::chain(error))
}

fn no_answer(target: &Target, reason: String) -> CliError {
    CliError::NoAnswer {
        url: target.url.clone(),
        reason,
    }
}

async fn http(args: &CallArgs, target: &Arc<Target>) -> Result<Reply, CliError> {
    let default = if args.data.is_some() {
        Method::POST
    } else {
        Method::GET
    };
    let data = args.data.clone().unwrap_or_default();
    let request = request(
        target,
        args.http2,
        args.method.clone().unwrap_or(default),
        &args.headers,
        data,
    )?;
    let client = HttpClient::new(target.clone(), Tasks::new(), args.http2, false);
    let (response, _connection) = client
        .send(request)
        .await
        .map_err(|error| failed(target, &error))?
        .into_parts();
    let (head, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|error| failed(target, &error))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    let mut text = format!("{:?} {}\n", head.version, head.status);
    for (name, value) in &head.headers {
        text.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    text.push_str(&format!("\n{body}"));
    for (name, value) in &trailers {
        text.push_str(&format!(
            "\n{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    Ok(Reply {
        success: head.status.as_u16() < 400,
        text,
        json: json!({
            "version": format!("{:?}", head.version),
            "status": head.status.as_u16(),
            "headers": listed(&head.headers),
            "body": serde_json::from_str(&body).unwrap_or(Value::String(body)),
            "trailers": listed(&trailers),
        }),
    })
}

/// A request in the form that its protocol wants: HTTP/1.1 names the host in a header, HTTP/2 in the URI.
pub(super) fn request(
    target: &Target,
    http2: bool,
    method: Method,
    headers: &[(HeaderName, HeaderValue)],
    body: impl Into<bytes::Bytes>,
) -> Result<Request<Body>, CliError> {
    let body = body.into();
    // An empty body is no body, so that a GET carries no content-length.
    let body = if body.is_empty() {
        Body::empty()
    } else {
        Body::new(Full::new(body))
    };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = target.http_uri()?;
    if !http2 {
        let path = target.path_and_query.parse();
        *request.uri_mut() = path.map_err(|_| CliError::Url {
            url: target.url.clone(),
            problem: "its path cannot be read".to_owned(),
        })?;
        if let Ok(host) = HeaderValue::from_str(&target.authority) {
            request.headers_mut().insert(http::header::HOST, host);
        }
    }
    for (name, value) in headers {
        request.headers_mut().insert(name, value.clone());
    }
    Ok(request)
}

async fn grpc(args: &CallArgs, target: &Arc<Target>) -> Result<Reply, CliError> {
    let client = HttpClient::new(target.clone(), Tasks::new(), true, true);
    let mut client = EchoClient::with_origin(client, target.http_uri()?);
    let request = EchoRequest {
        message: args.data.clone().unwrap_or_else(|| "hello".to_owned()),
        ..EchoRequest::default()
    };
    Ok(match client.unary(request).await {
        Ok(response) => {
            let (metadata, reply) = (listed(response.metadata().as_ref()), response.get_ref());
            let json = json!({
                "status": 0, "metadata": metadata, "message": reply.message, "name": reply.name,
                "version": reply.version, "pod": reply.pod, "peer": reply.peer, "received": reply.metadata,
            });
            Reply {
                success: true,
                text: format!("gRPC OK\n\n{json:#}\n"),
                json,
            }
        }
        Err(status) => {
            let code = i32::from(status.code());
            Reply {
                success: false,
                text: format!("gRPC {:?} ({code}): {}\n", status.code(), status.message()),
                json: json!({ "status": code, "message": status.message() }),
            }
        }
    })
}

async fn tcp(args: &CallArgs, target: &Target) -> Result<Reply, CliError> {
    let mut stream = client::connect(target)
        .await
        .map_err(|error| failed(target, &error))?;
    let mut received = Vec::new();
    let exchange = async {
        stream
            .write_all(args.data.as_deref().unwrap_or("hello\n").as_bytes())
            .await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut received).await
    };
    exchange.await.map_err(|error| failed(target, &error))?;
    let text = String::from_utf8_lossy(&received).into_owned();
    Ok(Reply {
        success: true,
        json: json!({ "received": text }),
        text,
    })
}

#[cfg(test)]
mod tests;
