"""The domains that libvirt knows, but those that no job backs up."""

from vmbackup.config.models import Config


def known_domains(config: Config) -> dict[str, str]:
    """UUID by name of all that do not hang on a repository. Raises HypervisorError."""
    from vmbackup.hypervisor import Host

    scratch, state = str(config.libvirt.scratch_dir), str(config.daemon.state_dir)
    with Host.open(config.libvirt.uri, scratch_dir=scratch, state_dir=state) as host:
        return {domain.name: domain.uuid for domain in host.own_domains()}
