//! Where randomness comes from: the operating system. Code that can do without calls nothing here and is handed bytes.

/// Fills `bytes` from the operating system. Without it no key can be made and no session opened, so there is nothing to
/// go on with if it fails.
pub fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives random bytes");
}

/// `N` random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}
