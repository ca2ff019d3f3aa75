//! gRPC-Web, which is a body like any other: its trailers are in it, and nobody touches them.

use crate::table::row::{Row, row};

/// A message of two bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x02\x08\x01";

fn trailers(status: &str) -> Vec<u8> {
    let text = format!("grpc-status:{status}\r\n");
    let mut frame = b"\x80\0\0\0".to_vec();
    frame.extend(u8::try_from(text.len()));
    frame.extend(text.as_bytes());
    frame
}

fn request(content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /shop.Cart/Add HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\nX-Grpc-Web: 1\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn answer(content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n"
    );
    [head.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
}

pub(crate) fn rows() -> Vec<Row> {
    let binary = |name, status| {
        let body = [MESSAGE, &trailers(status)].concat();
        row(name)
            .rfc("9110 6.4")
            .sends(request("application/grpc-web+proto", MESSAGE))
            .answers(answer("application/grpc-web+proto", &body))
            .sees("POST /shop.Cart/Add\ncontent-type: application/grpc-web+proto\nx-grpc-web: 1")
            .sees_body(MESSAGE)
            .gets("200\ncontent-type: application/grpc-web+proto\n!grpc-status")
            .gets_body(&body)
    };
    vec![
        binary("a call of gRPC-Web", "0"),
        binary("a call of gRPC-Web that fails", "5"),
        row("a call of gRPC-Web as text")
            .rfc("9110 6.4")
            .sends(request("application/grpc-web-text", b"AAAAAAIIAQ=="))
            .answers(answer("application/grpc-web-text", b"AAAAAAIIAQ==gAAAAA9ncnBjLXN0YXR1czowDQo="))
            .sees("POST /shop.Cart/Add\ncontent-type: application/grpc-web-text\n\nAAAAAAIIAQ==")
            .gets("200\ncontent-type: application/grpc-web-text\n\nAAAAAAIIAQ==gAAAAA9ncnBjLXN0YXR1czowDQo="),
        row("what a browser asks before gRPC-Web")
            .rfc("9110 9.3.7")
            .sends(
                "OPTIONS /shop.Cart/Add HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\n\
                 Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-grpc-web\r\n\r\n",
            )
            .answers("HTTP/1.1 204 None\r\nAccess-Control-Allow-Origin: http://b\r\n\r\n")
            .sees("OPTIONS /shop.Cart/Add\norigin: http://b\naccess-control-request-headers: x-grpc-web")
            .gets("204\naccess-control-allow-origin: http://b\n\n"),
    ]
}
