package main

import (
	"context"
	"errors"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// driver answers CSI.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer

	name, node string
	pool       *pool
}

const (
	mebibyte = 1 << 20
	// snapshotsParameter of a StorageClass says that snapshots of its volumes are cut and never become ready, as those of a
	// storage that does not get its work done. Volumes of such a class bear it in their name.
	snapshotsParameter = "snapshots"
	unready            = "unready-"

	// minimum is the smallest volume in which ext4 keeps a journal.
	minimum     = 8 * mebibyte
	defaultSize = 1 << 30
)

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	service := &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}
	return &csi.GetPluginCapabilitiesResponse{
		Capabilities: []*csi.PluginCapability{{Type: &csi.PluginCapability_Service_{Service: service}}},
	}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (d *driver) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		rpc := &csi.ControllerServiceCapability_RPC{Type: t}
		answer.Capabilities = append(answer.Capabilities,
			&csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: rpc}})
	}
	return answer, nil
}

func (d *driver) ValidateVolumeCapabilities(
	_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest,
) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: r.VolumeCapabilities},
	}, nil
}

func (d *driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	for _, c := range r.VolumeCapabilities {
		if c.GetBlock() != nil {
			return nil, status.Error(codes.InvalidArgument, "this driver has no raw block volumes: use volumeMode: Filesystem")
		}
	}
	size := r.GetCapacityRange().GetRequiredBytes()
	if size == 0 {
		size = defaultSize
	}
	size = (max(size, minimum) + mebibyte - 1) / mebibyte * mebibyte
	if limit := r.GetCapacityRange().GetLimitBytes(); limit > 0 && size > limit {
		return nil, status.Errorf(codes.OutOfRange, "a volume of at most %d bytes is not possible: the least is %d", limit, minimum)
	}
	from := ""
	switch source := r.GetVolumeContentSource(); {
	case source.GetSnapshot() != nil:
		s, err := d.pool.describe(source.GetSnapshot().SnapshotId)
		if err != nil {
			return nil, coded(err)
		}
		if s.Size > size {
			return nil, status.Errorf(codes.OutOfRange, "snapshot %s is of %d bytes, the volume would have %d", s.ID, s.Size, size)
		}
		from = d.pool.snapshot(s.ID)
	case source.GetVolume() != nil:
		from = d.pool.volume(source.GetVolume().VolumeId)
		if err := flush(from); err != nil {
			return nil, coded(err)
		}
	}
	id := r.Name
	switch v := r.Parameters[snapshotsParameter]; v {
	case "":
	case "unready":
		id = unready + id
	default:
		return nil, status.Errorf(codes.InvalidArgument, "parameter %s: %q is not known: unready is", snapshotsParameter, v)
	}
	if err := d.pool.create(ctx, id, size, from); err != nil {
		return nil, coded(err)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: id, CapacityBytes: size, ContentSource: r.VolumeContentSource}}, nil
}

func (d *driver) DeleteVolume(_ context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, coded(d.pool.deleteVolume(r.VolumeId))
}

func (d *driver) CreateSnapshot(_ context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	s, err := d.pool.cut(r.Name, r.SourceVolumeId)
	if err != nil {
		return nil, coded(err)
	}
	return &csi.CreateSnapshotResponse{Snapshot: message(s)}, nil
}

func (d *driver) DeleteSnapshot(_ context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	return &csi.DeleteSnapshotResponse{}, coded(d.pool.deleteSnapshot(r.SnapshotId))
}

// ListSnapshots lets the snapshotter see whether the handle of a pre-provisioned content names anything.
func (d *driver) ListSnapshots(_ context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	var found []snapshot
	if r.SnapshotId != "" {
		s, err := d.pool.describe(r.SnapshotId)
		if err != nil && !errors.Is(err, errMissing) {
			return nil, coded(err)
		}
		if err == nil {
			found = append(found, s)
		}
	} else {
		var err error
		if found, err = d.pool.snapshots(r.SourceVolumeId); err != nil {
			return nil, coded(err)
		}
	}
	answer := &csi.ListSnapshotsResponse{}
	for _, s := range found {
		answer.Entries = append(answer.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: message(s)})
	}
	return answer, nil
}

func message(s snapshot) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: s.ID, SourceVolumeId: s.Source, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Cut),
		ReadyToUse: !strings.HasPrefix(s.Source, unready)}
}

// coded gives an error its code of CSI.
func coded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errMissing):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, errTaken):
		return status.Error(codes.AlreadyExists, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}
