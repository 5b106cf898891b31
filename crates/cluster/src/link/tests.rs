//! Frames over real sockets: order, size, strangers, hanging peers.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};

use super::super::connection::POLL_INTERVAL;
use super::*;

fn pair(timeout: Duration) -> (Link, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, _) = listener.accept().unwrap();
    (Link::new(stream, "the peer".to_owned(), timeout, CancellationToken::new()).unwrap(), peer)
}

fn frame(kind: &[u8; 4], claimed: u64, content: &[u8]) -> Vec<u8> {
    [&kind[..], &claimed.to_le_bytes(), content].concat()
}

fn two_links() -> [Link; 2] {
    let (link, peer) = pair(Duration::from_secs(10));
    [link, Link::new(peer, "the other".to_owned(), Duration::from_secs(10), CancellationToken::new()).unwrap()]
}

#[test]
fn what_is_sent_arrives_in_order() {
    let [a, b] = two_links();
    std::thread::scope(|scope| {
        // More than the system holds for a reader that is late.
        let numbers: Vec<f32> = (0..2_000_000u32).map(|number| number as f32).collect();
        let sent = numbers.clone();
        scope.spawn(move || {
            let (first, rest) = sent.split_at(3);
            a.send(Kind::Parts, &[bytemuck::cast_slice(first), &[], bytemuck::cast_slice(rest)]).unwrap();
            a.send(Kind::Step, &[]).unwrap();
            a.send_json(Kind::Capacity, &vec![1, 2]).unwrap();
            a.end(&End { code: 4, sentence: "because".to_owned() });
        });
        std::thread::sleep(POLL_INTERVAL * 2);
        let mut received = [vec![0f32; 1_000_000], vec![0f32; 1_000_000]];
        b.receive(Kind::Parts, received.iter_mut().map(|piece| &mut piece[..])).unwrap();
        assert!(received.concat() == numbers);
        assert_eq!(b.receive_u32s(Kind::Step, 5), Ok(vec![]));
        assert_eq!(b.receive_json::<Vec<u32>>(Kind::Capacity, b.deadline()), Ok(vec![1, 2]));
        let end = b.receive_u32s(Kind::Step, 5).unwrap_err();
        assert_eq!(end.to_string(), "the other ended: because");
        assert_eq!(b.failure(), Some(&end));
    });
}

/// Neither a panic nor memory for what is only claimed: each is one sentence.
#[test]
fn hostile_bytes_are_refused() {
    let deep = vec![b'['; MAX_JSON_BYTES];
    for (bytes, expected) in [
        (vec![], "closed its connection"),
        (b"PART".to_vec(), "closed its connection"),
        (frame(b"PART", 8, &[0; 7]), "closed its connection"),
        (frame(b"PART", 4, &[0; 4]), "Parts of 4 bytes, not from 8 to 8"),
        (frame(b"PART", u64::MAX, &[0; 8]), "Parts of 18446744073709551615 bytes"),
        (frame(b"STEP", 8, &[0; 8]), "`STEP` where Parts belongs"),
        (frame(b"\0\xff\"\n", 8, &[0; 8]), "where Parts belongs"),
        (frame(b"END ", u64::MAX, &[0; 8]), "`END ` where Parts belongs"),
        (frame(b"END ", 2, b"{}"), "JSON that is none of ours"),
        (frame(b"END ", 4, b"\xff\xff\xff\xff"), "JSON that is none of ours"),
        (frame(b"END ", deep.len() as u64, &deep), "JSON that is none of ours"),
    ] {
        let (link, mut peer) = pair(Duration::from_secs(10));
        peer.write_all(&bytes).unwrap();
        drop(peer);
        let mut numbers = [0f32; 2];
        let said = link.receive(Kind::Parts, std::iter::once(&mut numbers[..])).unwrap_err().to_string();
        assert!(said.contains(expected) && said.starts_with("the peer "), "{}: {said}", bytes.escape_ascii());
    }
    for (bytes, expected) in [
        (frame(b"STEP", 24, &[0; 24]), "Step of 24 bytes, not from 0 to 20"),
        (frame(b"STEP", 7, &[0; 7]), "a frame of 7 bytes"),
        (frame(b"STEP", u64::MAX, &[]), "Step of 18446744073709551615 bytes"),
    ] {
        let (link, mut peer) = pair(Duration::from_secs(10));
        peer.write_all(&bytes).unwrap();
        let said = link.receive_u32s(Kind::Step, 5).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    for (content, claimed) in [(&deep[..], deep.len() + 1), (&deep[..], deep.len()), (b"{\"code\": 300}", 13)] {
        let (link, mut peer) = pair(Duration::from_secs(10));
        peer.write_all(&frame(b"CAPA", claimed as u64, content)).unwrap();
        drop(peer);
        assert!(matches!(link.receive_json::<End>(Kind::Capacity, link.deadline()), Err(LinkError::Broken(_))));
    }
}

#[test]
fn a_peer_that_hangs_is_given_up() {
    let (link, mut peer) = pair(Duration::from_millis(1));
    peer.write_all(b"PA").unwrap();
    let mut numbers = [0f32; 2];
    let said = link.receive(Kind::Parts, std::iter::once(&mut numbers[..])).unwrap_err().to_string();
    assert!(said.contains("group-timeout"), "{said}");
    // And one that takes nothing.
    let (link, _peer) = pair(Duration::from_millis(1));
    let much = vec![0; 1 << 26];
    let said = link.send(Kind::Parts, &[&much]).unwrap_err().to_string();
    assert!(said.contains("group-timeout"), "{said}");
}

#[test]
fn whoever_is_cancelled_waits_for_nobody() {
    let (link, _peer) = pair(Duration::from_secs(600));
    link.connection.cancel.cancel();
    assert_eq!(link.receive_u32s(Kind::Step, 5), Err(LinkError::Cancelled));
    assert_eq!(link.send(Kind::Step, &[]), Err(LinkError::Cancelled));
}
