//! nf_tables rules as data: rendered as nft text, applied over netlink.
