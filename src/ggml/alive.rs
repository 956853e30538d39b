//! Connections that notice it when the other machine is gone without a word.

use std::net::TcpStream;

/// Sends what is small at once. If the system can, it asks the other side from time to time whether it is still there, and gives it up
/// after half a minute without an answer.
pub(crate) fn keep(stream: &TcpStream) {
    // Without it messages wait for others, and all is well otherwise.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        use rustix::net::sockopt;
        use std::time::Duration;
        // Where the system refuses, a machine that is gone is waited for, with a message.
        let _ = sockopt::set_socket_keepalive(stream, true);
        let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(15));
        let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5));
        let _ = sockopt::set_tcp_keepcnt(stream, 3);
    }
}
