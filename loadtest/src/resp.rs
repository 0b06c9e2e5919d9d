//! The few commands that a peer's Redis is given.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One command over a connection of its own; its answer as text.
///
/// # Errors
/// When Redis refuses it, or answers with something that is neither text nor a number.
pub async fn call(to: SocketAddr, words: &[&str]) -> anyhow::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(to).await?);
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(command.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let (kind, rest) = line.trim_end().split_at_checked(1).context("Redis says nothing")?;
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" => {
            let mut text = vec![0; rest.parse().context("no text")?];
            stream.read_exact(&mut text).await?;
            Ok(String::from_utf8(text)?)
        }
        _ => bail!("Redis: {line}"),
    }
}
