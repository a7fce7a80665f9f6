//! `operator probe URL`: whether a URL of plain HTTP answers 200. For `helm test`: the image holds no other client.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    thread::sleep,
    time::{Duration, Instant},
};

/// For one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// Of an answer, what is read and shown.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Tries until it answers 200, at most for `within`; returns the last answer's first line.
///
/// # Errors
/// What came instead, the last time.
pub fn probe(url: &str, within: Duration) -> Result<String, String> {
    let (host, path) = parts(url)?;
    let begun = Instant::now();
    loop {
        let answer = ask(host, path).map_err(|error| error.to_string());
        let answer = answer.and_then(|answer| judge(&answer));
        if answer.is_ok() || begun.elapsed() + PAUSE > within {
            return answer.map_err(|error| format!("{url}: {error}"));
        }
        sleep(PAUSE);
    }
}

/// `host:port` and path.
fn parts(url: &str) -> Result<(&str, &str), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} does not begin with http://"))?;
    let slash = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(slash);
    if !host.contains(':') {
        return Err(format!("{url} has no port"));
    }
    Ok((host, if path.is_empty() { "/" } else { path }))
}

fn ask(host: &str, path: &str) -> io::Result<String> {
    let address = host.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, TRY_TIMEOUT)?;
    stream.set_read_timeout(Some(TRY_TIMEOUT))?;
    stream.set_write_timeout(Some(TRY_TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn judge(answer: &str) -> Result<String, String> {
    let first = answer.lines().next().unwrap_or_default().trim().to_owned();
    let mut words = first.split_whitespace();
    match (words.next(), words.next()) {
        (Some(version), Some("200")) if version.starts_with("HTTP/1.") => Ok(first),
        (Some(_), Some(_)) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_head, body)| body).trim();
            Err(format!("{first}: {body}"))
        }
        _ => Err("it does not speak HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that gives each of these answers to one request.
    fn server(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _peer) = listener.accept().expect("a request");
                let mut request = [0; 512];
                let _ = stream.read(&mut request).expect("a request");
                stream.write_all(answer.as_bytes()).expect("an answer");
            }
        });
        format!("http://{address}/readyz")
    }

    #[test]
    fn it_waits_until_the_answer_is_200() {
        let url = server(&["HTTP/1.1 503 Service Unavailable\r\n\r\nit starts", "HTTP/1.1 200 OK\r\n\r\nok"]);
        assert_eq!(probe(&url, Duration::from_secs(10)), Ok("HTTP/1.1 200 OK".to_owned()));
    }

    #[test]
    fn what_came_instead_is_said() {
        let check = |answer: &'static [&'static str], expected: &str| {
            let error = probe(&server(answer), Duration::ZERO).expect_err("not 200");
            assert!(error.contains(expected), "{error}");
        };
        check(&["HTTP/1.1 503 Service Unavailable\r\nx: y\r\n\r\nthe API is not known"], "the API is not known");
        check(&["SSH-2.0\r\n"], "does not speak HTTP");
        for (url, expected) in
            [("https://x:1/", "http://"), ("http://x/", "no port"), ("http://127.0.0.1:1/", "refused")]
        {
            let error = probe(url, Duration::ZERO).expect_err("nobody answers");
            assert!(error.contains(expected), "{error}");
        }
    }
}
