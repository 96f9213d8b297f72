//! What goes out on a connection in one piece.

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, Pipeline, RedisResult, Value};

/// One command, or several of which only the last one's answer is looked at: one message to whoever writes, one write, and one
/// wake-up for all of them.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    One(&'a Cmd),
    Several(&'a Pipeline),
}

impl Request<'_> {
    /// Sends it. The answer is that of the last command, an error that the server answered too.
    pub(crate) async fn send(self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        match self {
            Request::One(command) => connection.send_packed_command(command).await,
            Request::Several(commands) => {
                let answers = connection.send_packed_commands(commands, 0, commands.len()).await?;
                Ok(answers.into_iter().next_back().unwrap_or(Value::Nil))
            }
        }
    }

    /// Bytes of its arguments.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Request::One(command) => argument_bytes(command),
            Request::Several(commands) => commands.cmd_iter().map(argument_bytes).sum(),
        }
    }
}

fn argument_bytes(command: &Cmd) -> usize {
    let bytes = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    });
    bytes.sum()
}
